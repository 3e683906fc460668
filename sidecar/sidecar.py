"""The sidecar: it proposes multipliers, holds them for an interval, and learns from held-out loss."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sidecar import rules
from sidecar.channels import CHANNELS, Channel, DecayChannel
from sidecar.coefficients import decisions_of
from sidecar.evaluation import Evaluation, Heldout, WarnOnce
from sidecar.forks import Forks, Rollout
from sidecar.governed import Governed
from sidecar.learner import Learner
from sidecar.learning import Learning
from sidecar.playback import Decision, Playback, Playing
from sidecar.reward import Judgement
from sidecar.ruling import Ruling
from sidecar.settings import Settings
from sidecar.source import Decided, Source


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
        parameters = dict(model.named_parameters())
        if unknown := [name for name in chosen.lr_factors if name not in parameters]:
            raise ValueError(
                f"sidecar lr_factors name '{unknown[0]}', which is no parameter of this model: correct it."
            )
        warn = WarnOnce()
        self.evaluation = Evaluation(heldout_loss, self.channels, model, warn)
        self.governed = {name: Governed(channel, parameters, chosen) for name, channel in self.channels.items()}
        self.source = self._source(optimizer, playback, rollout, parameters, warn)
        # decay acts even where it is not learned, and first, so that other channels do not scale it
        decay = self.channels.get("decay") or DecayChannel(model, chosen)
        self._acting = [decay, *(channel for channel in self.channels.values() if channel is not decay)]
        self.decision: dict[str, Any] = {}  # the last one, as `record` returns it

    def _source(
        self,
        optimizer: torch.optim.Optimizer | None,
        playback: Sequence[Decision] | None,
        rollout: Rollout | None,
        parameters: Mapping[str, Tensor],
        warn: WarnOnce,
    ) -> Source:
        """The source of the multipliers. Raises `ValueError` where the largest that it may choose is not safe."""
        chosen, units = self.settings, {name: channel.units for name, channel in self.channels.items()}
        if chosen.coefficients and not chosen.forks:
            playback = decisions_of(
                chosen.coefficients, units, chosen.interval, chosen.steps, chosen.mean_matched, chosen.bounds
            )
        played = None if playback is None else Playback(playback, units, chosen.mode, chosen.seed)
        for name, governed in self.governed.items():
            governed.channel.check(self._largest(name, governed, played), chosen)
        if chosen.mode == "fixed":
            return Source()
        if played:
            return Playing(played, self.governed)
        if chosen.mode == "rule":
            return Ruling(chosen, self.governed)
        if chosen.forks and rollout is not None:
            return Forks(chosen, self.governed, self.evaluation, self.model, optimizer, rollout, warn)
        learners = {name: Learner(c, parameters, chosen, optimizer) for name, c in self.channels.items()}
        return Learning(chosen, learners, self.evaluation, self.model, warn)

    def _largest(self, name: str, governed: Governed, played: Playback | None) -> float:
        """The largest multiplier that the source may choose in this channel."""
        if played is not None:
            return played.largest(name)
        chosen = self.settings
        if chosen.mode == "rule":
            return rules.largest(governed.bounds, chosen.mean_matched)
        return 1.0 if chosen.mode == "fixed" else governed.bounds[1]

    def before_step(self, step: int) -> bool:
        """Call before every training step; True where an interval begins, with multipliers that may be new.

        There, the sidecar judges the proposal in force, learns from it and replaces it (by playback or rule, it puts
        the next multipliers in force); at the end of the run, where no step follows, it does nothing. Where the
        held-out loss fails or is not finite, it warns once, learns nothing and keeps the multipliers in force; so it
        does for a channel that has lost a tensor. With `credit="forks"` it forks the run instead, learns, and returns
        to the state before. Within a fork it does nothing.
        """
        steps, source = self.settings.steps, self.source
        if source.is_forking or (steps is not None and step >= steps):
            return False
        if self.decision and step < self.decision["step"] + source.interval:
            return False
        if (decided := source.decide(step)) is None:
            return False
        self._put_in_force(step, decided)
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
        kind, source = self._kind(), self.source.state_dict()
        return {"decision": self.record(), "kind": kind, "source": source, **self._passes()}

    def tensors(self) -> dict[str, Tensor]:
        """The channels' traces, name → tensor, which a restart needs beside `state_dict`."""
        return {f"{name}/{key}": t for name, c in self.channels.items() for key, t in c.memory().items()}

    def load_state_dict(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` and `tensors` returned. Raises `ValueError` for another model or other settings."""
        for name, now in self._kind().items():
            if (then := state["kind"].get(name)) != now:
                raise ValueError(
                    f"the saved sidecar has {name} {then!r} and this one {now!r}: resume with the {name} it was "
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
        self.source.load_state_dict(state["source"])
        for name, channel in self.channels.items():
            if values := saved.get(name):
                channel.set([values[unit.name] for unit in channel.units])
            channel.remember({k.partition("/")[2]: t for k, t in tensors.items() if k.startswith(f"{name}/")})
        self.decision = copy.deepcopy(state["decision"])
        self.evaluation.forwards, self.evaluation.backwards = state["evaluations"], state["backwards"]

    def _kind(self) -> dict[str, Any]:
        """The settings that must equal those of a saved state."""
        names = ("mode", "credit", "trace", "share", "policy")
        return {"channels": sorted(self.channels)} | {name: getattr(self.settings, name) for name in names}

    def _passes(self) -> dict[str, int]:
        return {"evaluations": self.evaluation.forwards, "backwards": self.evaluation.backwards}

    def _put_in_force(self, step: int, decided: Decided) -> None:
        by_channel: dict[str, dict[str, Any]] = {"summary": {}, "values": {}}
        for name, governed in self.governed.items():
            multipliers, units = decided.values[name].tolist(), governed.channel.units
            by_channel["summary"][name] = governed.summary(decided.values[name])
            by_channel["values"][name] = {unit.name: value for unit, value in zip(units, multipliers, strict=True)}
            governed.channel.set(multipliers)
        unknown: dict[str, Any] = {**dict.fromkeys(Judgement._fields), "sigma": {}, "entropy": {}}
        spent = self._passes() | self.source.spent()
        self.decision = {"step": step, **unknown, **decided.record, **spent, **by_channel}
