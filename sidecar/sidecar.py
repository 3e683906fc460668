"""The policy beside the optimizer: it proposes multipliers, holds them, and learns from held-out loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sidecar.channels import CHANNELS, Channel
from sidecar.policy import SIGMA_RANGE, GaussianPolicy, bounded, mean_matched, unit_features
from sidecar.reward import Judgement, Reward

MODES = ("learn", "random", "fixed")  # random: proposals without learning · fixed: every multiplier is 1


class Sidecar:
    """Multipliers for the parameters of any training loop, learned by REINFORCE (SCIENCE §6).

        sidecar = Sidecar(dict(model.named_parameters()), lr=3e-4, weight_decay=0.1, seed=0)
        for step in range(steps):
            sidecar.before_step(step, heldout_loss)
            ...  # w *= 1 - lr * weight_decay * sidecar.decay_multipliers().get(name, 1.0)

    `params`: name → parameter, as `named_parameters()` gives them. `lr`, `weight_decay`: the highest of the
    run, which the bounds are checked against. `channels`: names in `CHANNELS`. `interval`: steps a proposal
    is held. `sigma`: initial standard deviation of the log-multipliers, which never leave ±`log_bound`.
    `mean_matched`: the parameter-weighted mean multiplier of each channel is 1.
    Raises `ValueError` where a setting cannot work or is not safe.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        *,
        lr: float,
        weight_decay: float,
        seed: int,
        channels: Sequence[str] = ("decay",),
        interval: int = 25,
        mode: str = "learn",
        sigma: float = 0.3,
        policy_lr: float = 0.05,
        entropy: float = 0.001,
        baseline_decay: float = 0.9,
        log_bound: float = 2.3,
        mean_matched: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"sidecar mode '{mode}' is unknown: choose one of {', '.join(MODES)}.")
        if not channels or not set(channels) <= set(CHANNELS):
            raise ValueError(f"sidecar channels {list(channels)}: name at least one, among {', '.join(CHANNELS)}.")
        if interval < 1:
            raise ValueError(f"sidecar interval={interval} must be at least one step.")
        if not SIGMA_RANGE[0] <= sigma <= SIGMA_RANGE[1]:
            raise ValueError(f"sidecar sigma={sigma} must lie between {SIGMA_RANGE[0]} and {SIGMA_RANGE[1]}.")
        if not 0 < log_bound < 700:  # e^700 is still a double
            raise ValueError(f"sidecar log_bound={log_bound} must be positive and below 700.")
        if not (0 <= policy_lr < math.inf and 0 <= entropy < math.inf):
            raise ValueError(f"sidecar policy_lr={policy_lr} and entropy={entropy} must be 0 or more, and finite.")
        if not 0 < baseline_decay < 1:
            raise ValueError(f"sidecar baseline_decay={baseline_decay} must lie between 0 and 1, both excluded.")
        self.interval, self.mode, self.log_bound, self.mean_matched = interval, mode, log_bound, mean_matched
        self.policy_lr, self.entropy = policy_lr, entropy
        self.channels: dict[str, Channel] = {name: CHANNELS[name](params, lr, weight_decay) for name in channels}
        for channel in self.channels.values():
            channel.check(1.0 if mode == "fixed" else math.exp(log_bound))
        self.policies = {
            name: GaussianPolicy(unit_features(channel.units), sigma, seed, name)
            for name, channel in self.channels.items()
        }
        self.reward = Reward(baseline_decay)
        self.samples: dict[str, Tensor] = {}  # channel → the raw proposal in force, [units]
        self.decision: dict[str, Any] = {}  # the last one, as `record` gives it

    def before_step(self, step: int, heldout_loss: Callable[[], float]) -> bool:
        """Call before every training step; True where one interval ended and the next begins.

        There, the proposal in force is judged, learned from, and replaced. `heldout_loss` is called only
        there and must average over the same held-out batches every time (common random numbers). Where it is
        not finite, nothing is learned and the values in force stay. Mode `fixed` never calls it.
        """
        if self.mode == "fixed" or (self.decision and step < self.decision["step"] + self.interval):
            return False
        judgement = self.reward.observe(heldout_loss())
        if judgement and self.mode == "learn":
            for name, policy in self.policies.items():
                policy.update(self.samples[name], judgement.advantage, self.policy_lr, self.entropy)
        if judgement or not self.samples:
            self.samples = {name: policy.sample() for name, policy in self.policies.items()}
        self.decision = self._describe(step, judgement)
        return True

    def decay_multipliers(self) -> dict[str, float]:
        """Parameter → factor of its weight decay, for the units of the decay channel; all others keep 1."""
        if "decay" not in self.channels:
            return {}
        if not self.decision:
            return {unit.name: 1.0 for unit in self.channels["decay"].units}
        return dict(self.decision["values"]["decay"])

    def record(self) -> dict[str, Any]:
        """The last decision, JSON-able; empty before the first.

        `step`; `reward`, `baseline` (nats per token) and `advantage` of the interval that ended there, null
        where it could not be judged; and by channel of the proposal made there: the `sigma` of its draw, a
        `summary` (`min`, parameter-weighted `mean`, `max` multiplier) and its `values` (unit → multiplier).
        """
        return copy.deepcopy(self.decision)

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs, JSON-able: the same draws and values follow, bit for bit."""
        return {
            "policies": {name: policy.state_dict() for name, policy in self.policies.items()},
            "samples": {name: sample.tolist() for name, sample in self.samples.items()},
            "reward": self.reward.state_dict(),
            "decision": self.record(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned. Raises `ValueError` for other channels or units."""
        if set(state["policies"]) != set(self.channels):
            raise ValueError(
                f"the saved sidecar has channels {sorted(state['policies'])} and this one "
                f"{sorted(self.channels)}: resume with the channels it was saved with."
            )
        for name, values in state["decision"].get("values", {}).items():
            if set(values) != {unit.name for unit in self.channels[name].units}:
                raise ValueError(
                    f"the saved values of sidecar channel '{name}' are of other parameters than this "
                    "model's: resume with the model they were saved with."
                )
        for name, policy in self.policies.items():
            policy.load_state_dict(state["policies"][name])
        self.reward.load_state_dict(state["reward"])
        self.samples = {name: torch.tensor(x, dtype=torch.float64) for name, x in state["samples"].items()}
        self.decision = copy.deepcopy(state["decision"])

    def _describe(self, step: int, judgement: Judgement | None) -> dict[str, Any]:
        judged = judgement._asdict() if judgement else dict.fromkeys(Judgement._fields)
        decision: dict[str, Any] = {"step": step, **judged, "sigma": {}, "summary": {}, "values": {}}
        for name, channel in self.channels.items():
            sizes = torch.tensor([unit.size for unit in channel.units], dtype=torch.float64)
            sample = self.samples[name]
            if self.mean_matched:
                multipliers = mean_matched(sample, sizes, self.log_bound)
            else:
                multipliers = bounded(sample, self.log_bound)
            low, high = multipliers.aminmax()
            mean = multipliers @ sizes / sizes.sum()
            decision["sigma"][name] = self.policies[name].sigma
            decision["summary"][name] = {"min": low.item(), "mean": mean.item(), "max": high.item()}
            decision["values"][name] = {
                unit.name: value for unit, value in zip(channel.units, multipliers.tolist(), strict=True)
            }
        return decision
