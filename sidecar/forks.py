"""Credit by forks: antithetic pairs of forks train ahead of the run, and are judged at their end (SCIENCE §6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from sidecar import sharded
from sidecar.bias import SHORT, HorizonBias
from sidecar.coefficient_policy import CoefficientPolicy
from sidecar.coefficients import check, log_multipliers, moves
from sidecar.evaluation import Evaluation, WarnOnce
from sidecar.fork import forked
from sidecar.governed import Governed
from sidecar.settings import Settings
from sidecar.source import Decided, Source, without_a_tensor

Rollout = Callable[[int, int], Any]  # step, count: trains `count` steps from `step` on


def length_of(horizon: float, lr: float, weight_decay: float) -> int:
    """Steps of a fork: `horizon` memories of decay, each of `1/(lr·λ)` steps."""
    return math.ceil(round(horizon / (lr * weight_decay), 6))  # 20 steps of a horizon of 20·lr·λ, not 21


class Forks(Source):
    """Learns the coefficients of the multipliers' formula, those of all channels as one vector, from forks of the run.

    Raises `ValueError` for terms that the channels' units do not have.
    """

    def __init__(
        self,
        settings: Settings,
        governed: Mapping[str, Governed],
        evaluation: Evaluation,
        model: nn.Module,
        optimizer: Any,
        rollout: Rollout,
        warn: WarnOnce,
    ) -> None:
        self.settings, self.governed, self.evaluation, self.warn = settings, governed, evaluation, warn
        self.model, self.optimizer, self.rollout = model, optimizer, rollout
        check(settings.coefficients or {}, governed, settings.steps)
        start = {(channel, term): c for channel, of in (settings.coefficients or {}).items() for term, c in of.items()}
        self.terms = list(start)
        self.policy = CoefficientPolicy([*start.values()], settings.sigma, settings.policy_lr, settings.seed)
        self.interval, self.count = settings.interval, 0  # decisions so far
        self.horizon = length_of(settings.horizon, settings.lr, settings.weight_decay)
        self.bias = HorizonBias()
        self.differences: list[tuple[float | None, float | None]] = []  # of the last decision's pairs: short, full
        self.steps = 0  # that all forks have trained
        self.multipliers(self.policy.mean, 0)  # raises for unknown terms

    def length(self, step: int) -> int:
        """Steps of a fork at `step`: the horizon, or up to the end of the run if that is nearer."""
        end = self.settings.steps
        return self.horizon if end is None else max(0, min(self.horizon, end - step))

    def cost(self, step: int) -> tuple[int, int]:
        """Training steps and held-out evaluations of one decision at `step`."""
        forks, length = 2 * self.settings.pairs, self.length(step)
        return forks * length, forks * (1 + (length > SHORT))

    def multipliers(self, coefficients: Tensor, step: int) -> dict[str, Tensor]:
        """Channel → the multipliers of these coefficients at `step`, [units], within the bounds."""
        named, progress = self.named(coefficients), step / (self.settings.steps or 1)
        return {
            channel: of.pooled(of.within(log_multipliers(named[channel], of.channel.units, progress)))
            for channel, of in self.governed.items()
        }

    def named(self, coefficients: Tensor) -> dict[str, dict[str, float]]:
        """Channel → term → coefficient."""
        found: dict[str, dict[str, float]] = {channel: {} for channel in self.governed}
        for (channel, term), value in zip(self.terms, coefficients.tolist(), strict=True):
            found[channel][term] = value
        return found

    def decide(self, step: int) -> Decided:
        self.differences = []
        if not without_a_tensor(self.model, self.governed, self.warn):
            self._learn(step, self.count)
            self.count += 1
        self.agree()
        return Decided(self.multipliers(self.policy.mean, step), self._record())

    def spent(self) -> dict[str, int]:
        return {"fork_steps": self.steps}

    def _learn(self, step: int, number: int) -> None:
        """Fork the run at `step`, its decision of this `number`, and move the mean; the run's state is as before.

        Where a fork fails, it warns and nothing is learned; at the first decision the error is raised. Raises
        `ValueError` where the forks of the first decision all end alike.
        """
        noises = [self.policy.noise(number * self.settings.pairs + i) for i in range(self.settings.pairs)]
        noises = sharded.broadcast(noises)  # every rank may have its own seed
        self.is_forking = True
        try:
            pairs = [[self._fork(c, step, number) for c in self.policy.pair(noise)] for noise in noises]
        except Exception as error:  # whatever it is, training goes on
            if not self.policy.pairs or sharded.world_size() > 1:  # the other ranks wait inside the fork
                raise
            self.warn("forks", f"a fork of the run failed ({type(error).__name__}: {error})")
            return
        finally:
            self.is_forking = False
            self._act(self.policy.mean, step)
        self.differences = [(_finite(plus[0] - minus[0]), _finite(plus[1] - minus[1])) for plus, minus in pairs]
        if not self.policy.square and all(full == 0 for _, full in self.differences):
            raise ValueError(
                f"the sidecar's forks at step {step} all end at the same held-out loss: rollout must enclose the "
                "optimizer's step in sidecar.applied(lr) and train the model that heldout_loss judges, and the "
                "coefficients must move the multipliers within their bounds."
            )
        for difference in self.differences:
            self.bias.add(*difference)
        self.policy.learn(noises, [(plus, minus) for (_, plus), (_, minus) in pairs])

    def _fork(self, coefficients: Tensor, step: int, number: int) -> tuple[float, float]:
        """The rewards of one fork: at the short horizon, NaN where that is no nearer than its own, and at its own."""
        length, interval = self.length(step), self.settings.interval
        turns = range(interval, length, interval) if any(moves(term) for _, term in self.terms) else ()
        losses, at = {}, 0
        with forked(self.model, self.optimizer, [of.channel for of in self.governed.values()]):
            for end in sorted({min(SHORT, length), *turns, length}):
                self._act(coefficients, step + at - at % interval)
                self.rollout(step + at, end - at)
                self.steps, at = self.steps + end - at, end
                if at in (SHORT, length):
                    losses[at] = self.evaluation.measure(number, False)[0]
        return -losses[SHORT] if length > SHORT else math.nan, -losses[length]

    def _act(self, coefficients: Tensor, step: int) -> None:
        for channel, values in self.multipliers(coefficients, step).items():
            self.governed[channel].channel.set(values.tolist())

    def _record(self) -> dict[str, Any]:
        """The record of the last decision.

        `coefficients` in force; `differences`: of each pair, the reward of μ + σz less that of μ − σz at the short and
        at the full horizon (null: not judged); the `bias` so far.
        """
        return {
            "coefficients": self.named(self.policy.mean),
            "differences": [list(pair) for pair in self.differences],
            "bias": self.bias.summary(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "terms": [list(pair) for pair in self.terms],
            "policy": self.policy.state_dict(),
            "bias": self.bias.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises `ValueError` for coefficients of other terms."""
        if (saved := [tuple(pair) for pair in state["terms"]]) != self.terms:
            then, now = (", ".join(f"{channel}.{term}" for channel, term in terms) for terms in (saved, self.terms))
            raise ValueError(
                f"the saved sidecar learned coefficients of {then} and this one has {now}: resume with the terms it "
                "was saved with."
            )
        self.policy.load_state_dict(state["policy"])
        self.bias.load_state_dict(state["bias"])
        self.steps, self.count = state["steps"], state["count"]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
