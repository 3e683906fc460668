"""The sidecar: it proposes multipliers, holds them for an interval, and learns from held-out loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sidecar import rules, sharded
from sidecar.channels import CHANNELS, Channel, DecayChannel
from sidecar.coefficients import decisions_of
from sidecar.evaluation import Evaluation, Heldout, WarnOnce
from sidecar.forks import Forks, Rollout
from sidecar.governed import Governed
from sidecar.learner import Learner
from sidecar.playback import Decision, Playback
from sidecar.reward import Judgement, Reward
from sidecar.settings import Settings


class Sidecar:
    """Learns multipliers of weight decay, steps and gains by REINFORCE, beside any training loop (SCIENCE §6).

        sidecar = Sidecar(model, heldout_loss, lr=3e-4, weight_decay=0.1, seed=0)
        for step in range(steps):
            sidecar.before_step(step)
            ...  # forward, backward
            with sidecar.applied(lr):
                optimizer.step()  # with a weight decay of 0: the sidecar's is the only one

    `model`: the first number in a parameter's name is its layer. `heldout_loss(k)` returns the mean loss on the
    held-out batches of interval k: a tensor with its graph, or an iterable of tensors that sum to it, which keeps only
    one graph alive at a time. Both ends of an interval are judged on the same batches; set `fresh=True` if the batches
    differ from interval to interval. It must not change the state of training: no dropout.

    `optimizer`: for the feature that reads Adam's moments, to refuse one that decays weights itself, and for forks; its
    whole state is in its `state` and `param_groups`. `playback`: the decisions that the modes replay, permute and
    random play. `rollout(step, count)`: for `credit="forks"`; trains `count` steps from `step` on as the loop does,
    `applied` included, and changes nothing but model and optimizer, both of which the sidecar restores. Within it
    `before_step` does nothing, so that the loop itself can be the rollout. `settings`: the fields of `Settings`; `lr`,
    `weight_decay` and `seed` have no default. Where the optimizer's groups have learning rates of their own,
    `lr_factors` says how they compare with `lr`.

    Where several processes train together (torch.distributed), each has a sidecar, and a share or all of the held-out
    batches: the sidecars judge means over ranks, and all follow what rank 0 learned and drew. A model must be sharded
    by FSDP2 before it is given, and every module of it, the root too, be resharded after a forward pass.

    Raises `ValueError` where a setting cannot work or is not safe. What makes every evaluation useless raises at the
    first: an error of `heldout_loss`, or a loss that is no tensor, not finite, or, where slopes are needed, without a
    graph to the model. Later failures are warned about.
    """

    def __init__(
        self,
        model: nn.Module,
        heldout_loss: Heldout,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        playback: Sequence[Decision] | None = None,
        rollout: Rollout | None = None,
        **settings: Any,
    ) -> None:
        self.model = model
        self.settings = chosen = Settings(**settings)
        chosen.check(optimizer, playback, rollout)
        self.channels: dict[str, Channel] = {name: CHANNELS[name](model, chosen) for name in chosen.channels}
        for name, channel in self.channels.items():
            if all(unit.layer is None for unit in channel.units):
                raise ValueError(
                    f"sidecar channel '{name}' found nothing to act on in {type(model).__name__}: it needs modules "
                    "named like 'layers.0.mlp.down_proj', with a number for the layer."
                )
        units = {name: channel.units for name, channel in self.channels.items()}
        if chosen.coefficients and not chosen.forks:
            playback = decisions_of(chosen.coefficients, units, chosen.interval, chosen.steps, chosen.mean_matched)
        self.playback = None if playback is None else Playback(playback, units, chosen.mode, chosen.seed)
        parameters = dict(model.named_parameters())
        if unknown := [name for name in chosen.lr_factors if name not in parameters]:
            raise ValueError(
                f"sidecar lr_factors name '{unknown[0]}', which is no parameter of this model: correct it."
            )
        self.learners = {
            name: Learner(channel, parameters, chosen, optimizer)
            for name, channel in self.channels.items()
            if not chosen.forks
        }
        self.governed: dict[str, Governed] = {
            name: self.learners.get(name) or Governed(channel, parameters, chosen)
            for name, channel in self.channels.items()
        }
        for name, governed in self.governed.items():
            largest = self.playback.largest(name) if self.playback else governed.bounds[1]
            governed.channel.check(1.0 if chosen.mode == "fixed" else largest, chosen)
        if chosen.mode == "rule":
            rules.check(chosen.rule, units["decay"])
        # decay acts even where it is not learned, and first, so that other channels do not scale it
        decay = self.channels.get("decay") or DecayChannel(model, chosen)
        self._acting = [decay, *(channel for channel in self.channels.values() if channel is not decay)]
        self._needs_slopes = chosen.mode == "learn" and any(x.credit.needs_gradient for x in self.learners.values())
        if self._needs_slopes:
            for channel in self.channels.values():
                channel.follow(**({"carried": True} if chosen.trace == "run" else {}))
        self._warn = WarnOnce()
        self.evaluation = Evaluation(heldout_loss, self.channels, model, self._warn)
        self.forks = (
            Forks(chosen, self.governed, self.evaluation, model, optimizer, rollout, self._warn)
            if chosen.forks and rollout is not None
            else None
        )
        self.reward = Reward(chosen.baseline_decay, chosen.warmup)
        self.decision: dict[str, Any] = {}  # the last one, as `record` returns it
        self.count = 0  # intervals ended
        self._lost: set[str] = set()  # channels that keep their values because a tensor of theirs is gone

    def before_step(self, step: int) -> bool:
        """Call before every training step; True where an interval begins, with multipliers that may be new.

        There, the sidecar judges the proposal in force, learns from it and replaces it (by playback or rule, it puts
        the next multipliers in force); at the end of the run, where no step follows, it does nothing. Where the
        held-out loss fails or is not finite, it warns once, learns nothing and keeps the multipliers in force; so it
        does for a channel that has lost a tensor. With `credit="forks"` it forks the run instead, learns, and returns
        to the state before. Within a fork it does nothing.
        """
        chosen = self.settings
        if self.forks is not None and self.forks.is_running:
            return False
        if chosen.mode == "fixed" or (chosen.steps is not None and step >= chosen.steps):
            return False
        if self.playback is not None:
            return self._play(self.playback, step)
        if self.decision and step < self.decision["step"] + chosen.interval:
            return False
        if chosen.mode == "rule":
            self._put_in_force(step, sharded.broadcast(self._ruled()), None)
            return True
        if self.forks is not None:
            return self._fork(self.forks, step)
        judgement = self._judge() if self.decision else None
        if chosen.fresh or not self.decision:
            checked = self._needs_slopes and not self.evaluation.forwards  # with slopes, which must not wait to fail
            self.reward.begin(self.evaluation.measure(self.count, checked)[0])
        if judgement or not self.decision:
            for name, learner in self.learners.items():
                if name not in self._lost:
                    learner.draw(step)
        self._agree()
        self._put_in_force(step, {name: learner.multipliers() for name, learner in self.learners.items()}, judgement)
        return True

    @contextmanager
    def applied(self, lr: float) -> Iterator[None]:
        """Enclose the optimizer's step at learning rate `lr`: decay the weights around it, and scale it afterwards."""
        for channel in self._acting:
            channel.before_update(lr)
        yield
        for channel in reversed(self._acting):
            channel.after_update()

    def close(self) -> None:
        """Remove all hooks from the model; the multipliers in force no longer act in its forward pass."""
        for channel in self.channels.values():
            channel.close()

    def multipliers(self, channel: str) -> dict[str, float]:
        """Unit → multiplier in force."""
        if not self.decision:
            return {unit.name: 1.0 for unit in self.channels[channel].units}
        return dict(self.decision["values"][channel])

    def folded(self) -> dict[str, Tensor]:
        """Parameter → its value times the multiplier in force, for channels that act in the forward pass.

        With these values, and without a sidecar, the model computes what it computes now.
        """
        return {name: tensor for channel in self.channels.values() for name, tensor in channel.folded().items()}

    def record(self) -> dict[str, Any]:
        """The last decision, JSON-able; empty before the first.

        `step`; `reward`, `baseline`, their `deviation` (nats per token) and the `advantage` of the interval that ended
        at that step, null where it was not judged; `evaluations` and `backwards` so far; and for each channel of the
        new proposal: `sigma` and `entropy` (nats per unit) of its draw, a `summary` (`min`, parameter-weighted `mean`
        and `max` multiplier, share of units `at_bound`) and its `values` (unit → multiplier).
        """
        return copy.deepcopy(self.decision)

    def state_dict(self) -> dict[str, Any]:
        """The state for a restart, JSON-able. The restarted sidecar goes on bit for bit, given also `tensors`."""
        return {
            **self._learned(),
            "decision": self.record(),
            "kind": self._kind(),
            "count": self.count,
            **self._spent(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The channels' traces, name → tensor, which a restart needs beside `state_dict`."""
        return {f"{name}/{key}": t for name, c in self.channels.items() for key, t in c.memory().items()}

    def load_state_dict(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` and `tensors` returned. Raises `ValueError` for another model or other settings."""
        then = {"channels": sorted(state["learners"]), "trace": "interval", **state["kind"]}
        for name, now in self._kind().items():
            if then[name] != now:
                raise ValueError(
                    f"the saved sidecar has {name} {then[name]!r} and this one {now!r}: resume with the {name} it was "
                    "saved with."
                )
        if set(tensors) != set(self.tensors()):
            raise ValueError(
                f"the saved sidecar's {len(tensors)} tensors are not the {len(self.tensors())} that this one needs: "
                "save what `tensors` returns beside `state_dict`; a channel's `memory` has its names from the start."
            )
        saved = state["decision"].get("values", {})
        for name, values in saved.items():
            if set(values) != {unit.name for unit in self.channels[name].units}:
                raise ValueError(
                    f"the saved values of sidecar channel '{name}' are of other parameters than this model's: resume "
                    "with the model they were saved with."
                )
        self._restore(state)
        for name, channel in self.channels.items():
            if values := saved.get(name):
                channel.set([values[unit.name] for unit in channel.units])
            channel.remember({k.partition("/")[2]: t for k, t in tensors.items() if k.startswith(f"{name}/")})
        self.decision, self.count = copy.deepcopy(state["decision"]), state["count"]
        self.evaluation.forwards, self.evaluation.backwards = state["evaluations"], state["backwards"]

    def _spent(self) -> dict[str, int]:
        """Held-out passes, and the training steps of forks, so far."""
        passes = {"evaluations": self.evaluation.forwards, "backwards": self.evaluation.backwards}
        return passes | ({"fork_steps": self.forks.steps} if self.forks else {})

    def _kind(self) -> dict[str, Any]:
        """The settings that must equal those of a saved state."""
        names = ("mode", "credit", "trace", "share", "policy")
        return {"channels": sorted(self.channels)} | {name: getattr(self.settings, name) for name in names}

    def _learned(self) -> dict[str, Any]:
        learners = {name: learner.state_dict() for name, learner in self.learners.items()}
        forks = {"forks": self.forks.state_dict()} if self.forks else {}
        return {"learners": learners, "reward": self.reward.state_dict(), **forks}

    def _restore(self, learned: Mapping[str, Any]) -> None:
        for name, learner in self.learners.items():
            learner.load_state_dict(learned["learners"][name])
        self.reward.load_state_dict(learned["reward"])
        if self.forks:
            self.forks.load_state_dict(learned["forks"])

    def _play(self, playback: Playback, step: int) -> bool:
        due = playback.at(step)
        if due is None or (self.decision and self.decision["recorded_at"] == due[0]):
            return False
        recorded_at, played = due
        values = {}
        for name, governed in self.governed.items():
            multipliers = [played[name][unit.name] for unit in governed.channel.units]
            values[name] = governed.pooled(torch.tensor(multipliers, dtype=torch.float64))
        self._put_in_force(step, values, None, recorded_at=recorded_at)
        return True

    def _ruled(self) -> dict[str, Tensor]:
        """The multipliers of the rule for the weights as they are."""
        values = {}
        for name, governed in self.governed.items():
            weights = [weight for (weight,) in governed.weights]
            found = rules.multipliers_of(self.settings.rule, governed.channel.units, weights, governed.bounds)
            values[name] = governed.pooled(governed.within(found.log()))
        return values

    def _fork(self, forks: Forks, step: int) -> bool:
        self._lost = self._channels_without_a_tensor()
        if not self._lost:
            forks.learn(step, self.count)
            self.count += 1
        self._agree()
        self._put_in_force(step, forks.multipliers(forks.policy.mean, step), None, **forks.record())
        return True

    def _agree(self) -> None:
        if sharded.world_size() > 1:  # ranks compute the same, but must not drift apart by rounding
            self._restore(sharded.broadcast(self._learned()))

    def _judge(self) -> Judgement | None:
        """End the interval and learn from it; None where it is not judged."""
        self._lost = self._channels_without_a_tensor()
        loss, slopes = self.evaluation.measure(self.count, self._needs_slopes)
        if self._needs_slopes and math.isfinite(loss) and not self._lost and not any(map(torch.any, slopes.values())):
            self._warn(
                "slopes",
                "no multiplier of the sidecar had any effect on the held-out loss of the interval that ended",
                "enclose the optimizer's steps in sidecar.applied(lr), and let heldout_loss depend on the weights",
            )
        judgement = self.reward.observe(loss)
        self.count += 1
        if judgement and self.settings.mode == "learn":
            for name, learner in self.learners.items():
                if name not in self._lost:
                    learner.learn(judgement, slopes[name])
        return judgement

    def _channels_without_a_tensor(self) -> set[str]:
        present, found = dict(self.model.named_parameters()), set()
        for name, governed in self.governed.items():
            if lost := governed.lost_tensors(present):
                others = ", …" * (len(lost) > 1)
                self._warn(f"lost {name}", f"channel '{name}' has lost {len(lost)} of its tensors ({lost[0]}{others})")
                found.add(name)
        return found

    def _put_in_force(self, step: int, values: dict[str, Tensor], judgement: Judgement | None, **more: Any) -> None:
        judged = judgement._asdict() if judgement else dict.fromkeys(Judgement._fields)
        by_channel: dict[str, dict[str, Any]] = {"sigma": {}, "entropy": {}, "summary": {}, "values": {}}
        for name, governed in self.governed.items():
            if isinstance(governed, Learner) and self.playback is None and self.settings.mode != "rule":
                by_channel["sigma"][name] = governed.policy.sigma
                by_channel["entropy"][name] = governed.policy.entropy
            multipliers, units = values[name].tolist(), governed.channel.units
            by_channel["summary"][name] = governed.summary(values[name])
            by_channel["values"][name] = {unit.name: value for unit, value in zip(units, multipliers, strict=True)}
            governed.channel.set(multipliers)
        self.decision = {"step": step, **more, **judged, **self._spent(), **by_channel}
