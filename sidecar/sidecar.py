"""The policy beside the optimizer: it proposes multipliers, holds them, and learns from held-out loss."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sidecar import sharded
from sidecar.channels import CHANNELS, Arithmetic, Channel, DecayChannel
from sidecar.credit import CREDITS
from sidecar.features import FEATURES, Observation, features_of
from sidecar.playback import Decision, Playback
from sidecar.policy import MEANS, SIGMA_RANGE, GaussianPolicy, bounded, mean_matched, mean_matched_slopes
from sidecar.reward import Judgement, Reward
from sidecar.units import SHARES, groups_of

MODES = ("learn", "replay", "permute", "random", "fixed")
Heldout = Callable[[int], Tensor | Iterable[Tensor]]


class Sidecar:
    """Multipliers for what trains a model, learned by REINFORCE beside any training loop (SCIENCE §6).

        sidecar = Sidecar(model, heldout_loss, lr=3e-4, weight_decay=0.1, seed=0)
        for step in range(steps):
            sidecar.before_step(step)
            ...  # forward, backward
            with sidecar.applied(lr):
                optimizer.step()  # with a weight decay of 0: the sidecar's is the only one

    `model`: layers are told by the first number in a parameter's name. `heldout_loss(k)` returns the mean loss
    on the held-out batches of interval k, as a tensor with its graph, or an iterable of tensors that sum to it,
    of which one graph is alive at a time. Both ends of an interval are judged on the same batches; where
    intervals differ in theirs, say `fresh=True`. It must leave no trace in the training: no dropout.

    Where several processes train together (torch.distributed), each has a sidecar and its own share of the held-out
    batches, or all of them: the means over ranks are judged, and what the first rank learned and drew is in force on
    all. A model sharded by FSDP2 must be so before, and be resharded after a forward pass, its root as well.

    `lr`, `weight_decay`, `eps`, `beta2`, `lr_max`: the highest of the run, which the channels' bounds are checked
    against. `channels`: names in `CHANNELS`. `interval`: steps a proposal is held. `steps`: length of the run, at
    whose end nothing more is proposed, and for the feature `progress`. `optimizer`: for features that read Adam's
    moments, and to refuse one that decays weights itself.

    `mode`: `learn`; `replay` a `playback` (decisions as `record` gives them); `permute` its layers; `random`:
    its values dealt to the units at random, or without a playback draws of the untrained policy (where units differ
    in size, both scale what they exchange to the amount that was recorded); `fixed`:
    every multiplier is 1. `share`: units that hold one multiplier together (`none`, `kind`, `layer`, `all`); of
    a playback, their parameter-weighted mean. `credit`: names in `CREDITS`; `factored` takes every unit's slope from
    a held-out backward pass, and REINFORCE for `unexplained` of what the slopes leave over; with 0 no reward enters.
    `warmup`: intervals at the start that are not judged and hold the first proposal; `baseline_decay`: memory of
    the averages that later ones are judged against. `policy_lr`: share of σ by which a mean moves for a step of size
    one; `entropy`: its bonus.
    `features`, `policy`: what the policy's mean depends on, and how. `sigma`: initial standard deviation of the
    log-multipliers. `bounds`: channel → (least, largest multiplier). `mean_matched`: the parameter-weighted
    mean multiplier of each channel is 1.

    Raises `ValueError` where a setting cannot work or is not safe.
    """

    def __init__(
        self,
        model: nn.Module,
        heldout_loss: Heldout,
        *,
        lr: float,
        weight_decay: float,
        seed: int,
        eps: float = 1e-8,
        beta2: float = 0.999,
        lr_max: float = 0.02,
        channels: Sequence[str] = ("decay",),
        interval: int = 20,
        fresh: bool = False,
        steps: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        mode: str = "learn",
        playback: Sequence[Decision] | None = None,
        share: str = "none",
        credit: str = "factored",
        unexplained: float = 1.0,
        features: Sequence[str] = ("unit",),
        policy: str = "linear",
        sigma: float = 0.3,
        policy_lr: float = 0.5,
        entropy: float = 0.001,
        baseline_decay: float = 0.8,
        warmup: int = 3,
        bounds: Mapping[str, Sequence[float]] | None = None,
        mean_matched: bool = False,
    ) -> None:
        _one_of("mode", mode, MODES)
        _one_of("share", share, SHARES)
        _one_of("credit", credit, CREDITS)
        _one_of("policy", policy, MEANS)
        for name in channels:
            _one_of("channel", name, CHANNELS)
        for name in features:
            _one_of("feature", name, FEATURES)
        for name in bounds or {}:
            _one_of("bounds", name, CHANNELS)
        for name, what, given in (("progress", "steps", steps), ("momentum_alignment", "optimizer", optimizer)):
            if name in features and given is None:
                raise ValueError(f"sidecar feature '{name}' would always be 0: say {what}=…, or drop the feature.")
        for group in optimizer.param_groups if optimizer else ():
            if group.get("weight_decay"):
                raise ValueError(
                    f"the optimizer decays weights by {group['weight_decay']:g} of its own, on top of the sidecar's: "
                    "set its weight_decay to 0."
                )
        if not channels:
            raise ValueError(f"sidecar channels {list(channels)}: name at least one, among {', '.join(CHANNELS)}.")
        if interval < 1:
            raise ValueError(f"sidecar interval={interval} must be at least one step.")
        if not SIGMA_RANGE[0] <= sigma <= SIGMA_RANGE[1]:
            raise ValueError(f"sidecar sigma={sigma} must lie between {SIGMA_RANGE[0]} and {SIGMA_RANGE[1]}.")
        not_negative = {"policy_lr": policy_lr, "entropy": entropy, "unexplained": unexplained, "warmup": warmup}
        for name, value in not_negative.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"sidecar {name}={value} must be 0 or more, and finite: set it so.")
        if mean_matched and (share == "all" or playback is not None):
            why = "a playback, whose amount is its own" if playback is not None else "share='all', which has no other"
            raise ValueError(f"sidecar mean_matched has no effect with {why}: drop one of them.")
        if not 0 < beta2 < 1:
            raise ValueError(f"sidecar beta2={beta2} must lie between 0 and 1, both excluded: it is Adam's.")
        if not 0 < baseline_decay < 1:
            raise ValueError(
                f"sidecar baseline_decay={baseline_decay} must lie between 0 and 1, both excluded: it is the share of "
                "the old average that is kept."
            )
        if mode in ("replay", "permute") and playback is None:
            raise ValueError(f"sidecar mode '{mode}' needs a playback: the decisions of a run that learned.")
        if mode in ("learn", "fixed") and playback is not None:
            raise ValueError(f"sidecar mode '{mode}' has no use for a playback: choose replay, permute or random.")
        self.heldout_loss, self.interval, self.fresh, self.steps, self.mode = heldout_loss, interval, fresh, steps, mode
        self.policy_lr, self.entropy, self.mean_matched = policy_lr, entropy, mean_matched
        self.feature_names, self.optimizer = tuple(features), optimizer
        self._kind = {"mode": mode, "credit": credit, "share": share, "policy": policy}  # of what is saved
        self.model = model
        arithmetic = Arithmetic(lr, weight_decay, eps, beta2, lr_max)
        self.channels: dict[str, Channel] = {name: CHANNELS[name](model, arithmetic) for name in channels}
        for name, channel in self.channels.items():
            if not channel.units:
                raise ValueError(
                    f"sidecar channel '{name}' found nothing to act on in {type(model).__name__}: it needs modules "
                    "named like 'layers.0.mlp.down_proj', with a number for the layer."
                )
        units = {name: channel.units for name, channel in self.channels.items()}
        self.playback = None if playback is None else Playback(playback, units, mode, seed)
        self.limits = {name: self._checked(name, bounds or {}, arithmetic) for name in channels}
        # decay is applied here even where it is not learned, and first: what others scale is no part of it
        decay = self.channels.get("decay") or DecayChannel(model, arithmetic)
        self._acting = [decay, *(channel for channel in self.channels.values() if channel is not decay)]
        self.groups = {name: torch.tensor(groups_of(c.units, share)) for name, c in self.channels.items()}
        self.sizes = {
            name: torch.tensor([unit.size for unit in c.units], dtype=torch.float64)
            for name, c in self.channels.items()
        }
        parameters = dict(model.named_parameters())
        self._parameters = list(parameters.values())
        self._weights = {
            name: [[parameters[w] for w in unit] for unit in c.weights()] for name, c in self.channels.items()
        }
        width = {name: self._features(name, 0).shape[1] for name in channels}
        self.policies = {name: GaussianPolicy(policy, width[name], sigma, seed, name) for name in channels}
        self.credits = {name: CREDITS[credit](baseline_decay, unexplained) for name in channels}
        self.needs_gradient = mode == "learn" and any(c.needs_gradient for c in self.credits.values())
        if self.needs_gradient:
            for channel in self.channels.values():
                channel.follow()
        self.reward = Reward(baseline_decay, warmup)
        self.draws: dict[str, dict[str, Tensor]] = {}  # channel → features, noise and sample of the proposal in force
        self.decision: dict[str, Any] = {}  # the last one, as `record` gives it
        self.count = 0  # intervals ended
        self.evaluations = 0  # forward passes over the held-out batches
        self.backwards = 0  # and backward passes
        self._lost: set[str] = set()  # channels that keep their values because a tensor of theirs is gone
        self._warned: set[str] = set()

    def before_step(self, step: int) -> bool:
        """Call before every training step; True where one interval ended and the next begins.

        There, the proposal in force is judged, learned from, and replaced; at the end of the run, where no step
        follows, it stays. Where the held-out loss fails or is not finite, one warning is given, nothing is learned
        and the values in force stay; so do those of a channel that has lost a tensor.
        """
        if self.mode == "fixed" or (self.steps is not None and step >= self.steps):
            return False
        if self.playback is not None:
            return self._play(step)
        if self.decision and step < self.decision["step"] + self.interval:
            return False
        judgement = self._judge() if self.decision else None
        if self.fresh or not self.decision:
            self.reward.begin(self._evaluate(False)[0])
        if judgement or not self.decision:
            self.draws |= {name: self._draw(name, step) for name in self.channels if name not in self._lost}
        if sharded.world_size() > 1:  # they compute alike, and even so cannot drift apart
            self._remember(sharded.broadcast(self._memory()))
        values = {name: self._multipliers(name, draw["sample"]) for name, draw in self.draws.items()}
        self._put_in_force(step, values, judgement)
        return True

    @contextmanager
    def applied(self, lr: float) -> Iterator[None]:
        """Around the optimizer's step at learning rate `lr`: decay before it, its scale after it."""
        for channel in self._acting:
            channel.before_update(lr)
        yield
        for channel in self._acting:
            channel.after_update()

    def close(self) -> None:
        """Take everything off the model that was put on it; the values in force no longer act."""
        for channel in self.channels.values():
            channel.close()

    def multipliers(self, channel: str) -> dict[str, float]:
        """Unit → multiplier in force."""
        if not self.decision:
            return {unit.name: 1.0 for unit in self.channels[channel].units}
        return dict(self.decision["values"][channel])

    def folded(self) -> dict[str, Tensor]:
        """Parameters with the multipliers in force worked in, where the forward pass depends on them.

        With these in place of its own, the model computes without a sidecar what it computes with it.
        """
        return {name: tensor for channel in self.channels.values() for name, tensor in channel.folded().items()}

    def record(self) -> dict[str, Any]:
        """The last decision, JSON-able; empty before the first.

        `step`; `reward`, `baseline` and their `deviation` (nats per token) and `advantage` of the interval that
        ended there, null where it could not be judged; `evaluations` and `backwards` so far; and by channel of
        the proposal made there: `sigma` and `entropy` (nats per unit) of its draw, a `summary` (`min`,
        parameter-weighted `mean`, `max` multiplier, share of units `at_bound`) and its `values` (unit → multiplier).
        """
        return copy.deepcopy(self.decision)

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs, JSON-able: the same draws and values follow, bit for bit."""
        return {
            **self._memory(),
            "decision": self.record(),
            "kind": self._kind,
            "count": self.count,
            "evaluations": self.evaluations,
            "backwards": self.backwards,
        }

    def tensors(self) -> dict[str, Tensor]:
        """What a restart needs beside `state_dict`: the channels' own memory, name → tensor."""
        return {f"{name}/{key}": t for name, c in self.channels.items() for key, t in c.memory().items()}

    def load_state_dict(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` and `tensors` returned. Raises `ValueError` for other channels or units."""
        if set(state["policies"]) != set(self.channels):
            raise ValueError(
                f"the saved sidecar has channels {sorted(state['policies'])} and this one "
                f"{sorted(self.channels)}: resume with the channels it was saved with."
            )
        for what, own in self._kind.items():
            if state["kind"][what] != own:
                raise ValueError(
                    f"the saved sidecar has {what} '{state['kind'][what]}' and this one '{own}': resume with the "
                    f"{what} it was saved with."
                )
        if set(tensors) != set(self.tensors()):
            raise ValueError(
                f"the saved sidecar's {len(tensors)} tensors are not the {len(self.tensors())} that this one needs: "
                "save what `tensors` returns beside `state_dict`."
            )
        for name, values in state["decision"].get("values", {}).items():
            if set(values) != {unit.name for unit in self.channels[name].units}:
                raise ValueError(
                    f"the saved values of sidecar channel '{name}' are of other parameters than this "
                    "model's: resume with the model they were saved with."
                )
        self._remember(state)
        for name, channel in self.channels.items():
            if values := state["decision"].get("values", {}).get(name):
                channel.set([values[unit.name] for unit in channel.units])
            channel.remember({k.partition("/")[2]: t for k, t in tensors.items() if k.startswith(f"{name}/")})
        self.decision = copy.deepcopy(state["decision"])
        self.count, self.evaluations, self.backwards = state["count"], state["evaluations"], state["backwards"]

    def _memory(self) -> dict[str, Any]:
        """What was learned and drawn, JSON-able."""
        return {
            "policies": {name: policy.state_dict() for name, policy in self.policies.items()},
            "credits": {name: credit.state_dict() for name, credit in self.credits.items()},
            "draws": {name: {k: v.tolist() for k, v in draw.items()} for name, draw in self.draws.items()},
            "reward": self.reward.state_dict(),
        }

    def _remember(self, memory: Mapping[str, Any]) -> None:
        for name in self.channels:
            self.policies[name].load_state_dict(memory["policies"][name])
            self.credits[name].load_state_dict(memory["credits"][name])
        self.reward.load_state_dict(memory["reward"])
        self.draws = {
            name: {key: torch.tensor(value, dtype=torch.float64) for key, value in draw.items()}
            for name, draw in memory["draws"].items()
        }

    def _play(self, step: int) -> bool:
        assert self.playback is not None
        due = self.playback.at(step)
        if due is None or (self.decision and self.decision["recorded_at"] == due[0]):
            return False
        recorded_at, played = due
        values = {
            name: self._pooled(name, torch.tensor([played[name][u.name] for u in c.units], dtype=torch.float64))
            for name, c in self.channels.items()
        }
        self._put_in_force(step, values, None, recorded_at=recorded_at)
        return True

    def _pooled(self, name: str, multipliers: Tensor) -> Tensor:
        """Units that share one multiplier get their parameter-weighted mean; exactly their own where they do not."""
        groups, sizes = self.groups[name], self.sizes[name]
        if len(groups.unique()) == len(groups):
            return multipliers
        total = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
        mean = total.index_add(0, groups, multipliers * sizes) / total.index_add(0, groups, sizes)
        return mean[groups]

    def _evaluate(self, differentiate: bool) -> tuple[float, dict[str, Tensor]]:
        """Held-out loss, and per channel the derivative of the reward by every unit's log-multiplier."""
        zeros = {name: torch.zeros(len(c.units), dtype=torch.float64) for name, c in self.channels.items()}
        sizes = [1, *(len(zero) for zero in zeros.values() if differentiate)]
        try:
            loss, slopes = self._differentiate() if differentiate else (self._mean_loss(), {})
            columns = [loss.detach().view(1), *slopes.values()]
            numbers, failed = torch.cat([column.double().to(loss.device) for column in columns]), False
        except Exception as error:  # whatever it is, training goes on
            if any(map(sharded.is_sharded, self._parameters)):
                raise  # the other ranks are in the middle of a pass that this one has left
            self._warn("evaluation", f"the held-out evaluation failed ({type(error).__name__}: {error})")
            numbers = torch.full((sum(sizes),), math.nan, dtype=torch.float64, device=self._parameters[0].device)
            failed = True
        value, *found = sharded.all_reduce_mean(numbers).cpu().split(sizes)  # one wait for the device
        if failed:
            return math.nan, zeros
        self.evaluations += 1
        self.backwards += differentiate
        if not value.isfinite():
            self._warn("loss", f"the held-out loss is {value.item()}")
        # a unit without a slope is not moved
        return value.item(), zeros | {n: own.nan_to_num(0.0, 0.0, 0.0) for n, own in zip(zeros, found, strict=False)}

    @torch.no_grad()
    def _mean_loss(self) -> Tensor:
        return torch.stack(list(self._parts())).sum()

    def _parts(self) -> Iterator[Tensor]:
        parts = self.heldout_loss(self.count)
        for part in [parts] if isinstance(parts, Tensor) else parts:
            if part.ndim:
                raise ValueError(f"heldout_loss gave a tensor of shape {list(part.shape)}, not a loss")
            yield part

    def _differentiate(self) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = {name: channel.tensors() for name, channel in self.channels.items()}
        flat = list({id(t): t for tensors in inputs.values() for t in tensors}.values())
        frozen = [t for t in flat if not t.requires_grad]  # gains, of which training wants no gradient
        for tensor in frozen:
            tensor.requires_grad_(True)
        total: list[Tensor] = []
        gradients: list[Tensor | None] = [None] * len(flat)
        try:
            with torch.enable_grad():
                for part in self._parts():
                    total.append(part.detach())
                    for i, g in enumerate(sharded.gradients(part, flat, self._parameters)):
                        known = gradients[i]
                        gradients[i] = g if known is None or g is None else known + g
                    del part
        finally:
            for tensor in frozen:
                tensor.requires_grad_(False)
        by_tensor = {id(t): g for t, g in zip(flat, gradients, strict=True)}
        return torch.stack(total).sum(), {
            name: self.channels[name].slope([by_tensor[id(t)] for t in tensors]) for name, tensors in inputs.items()
        }

    def _judge(self) -> Judgement | None:
        """End the interval: what came of it, learned from; None where it could not be judged."""
        self._lost = self._without_a_tensor()
        loss, slopes = self._evaluate(self.needs_gradient)
        judgement = self.reward.observe(loss)
        self.count += 1
        if judgement and self.mode == "learn":
            for name in self.channels:
                if name not in self._lost:
                    self._learn(name, judgement, slopes[name])
        return judgement

    def _learn(self, name: str, judgement: Judgement, slopes: Tensor) -> None:
        """One step of the channel's policy. Units that share a multiplier add up their slopes."""
        draw, policy = self.draws[name], self.policies[name]
        if self.mean_matched:
            log_values = draw["sample"][self.groups[name]]
            slopes = mean_matched_slopes(slopes, log_values, self.sizes[name], self.limits[name])
        pooled = torch.zeros(len(draw["noise"]), dtype=torch.float64).index_add(0, self.groups[name], slopes)
        step = self.credits[name].step(judgement, draw["noise"], policy.sigma, pooled)
        policy.update(draw["features"], step, self.policy_lr, self.entropy, self.limits[name])

    def _draw(self, name: str, step: int) -> dict[str, Tensor]:
        features = self._features(name, step)
        sample, noise = self.policies[name].sample(features)
        return {"features": features, "sample": sample, "noise": noise}

    def _features(self, name: str, step: int) -> Tensor:
        """[groups, features]: the mean over the units of each group."""
        momenta = {}
        if self.optimizer is not None and "momentum_alignment" in self.feature_names:
            momenta = {p: s["exp_avg"] for p, s in self.optimizer.state.items() if "exp_avg" in s}
        progress = step / self.steps if self.steps else 0.0
        seen = Observation(self.channels[name].units, self._weights[name], momenta, progress)
        by_unit, groups = features_of(self.feature_names, seen), self.groups[name]
        total = torch.zeros(int(groups.max()) + 1, by_unit.shape[1], dtype=torch.float64)
        return total.index_add(0, groups, by_unit) / torch.bincount(groups)[:, None]

    def _multipliers(self, name: str, sample: Tensor) -> Tensor:
        """[units], from log-multipliers of groups."""
        log_values = sample[self.groups[name]]
        if self.mean_matched:
            return mean_matched(log_values, self.sizes[name], self.limits[name])
        return bounded(log_values, self.limits[name])

    def _without_a_tensor(self) -> set[str]:
        """Channels of which a tensor is gone from the model: pruned, replaced or emptied."""
        there, found = dict(self.model.named_parameters()), set()
        for name, channel in self.channels.items():
            governed = zip(channel.weights(), self._weights[name], strict=True)
            pairs = [pair for names, tensors in governed for pair in zip(names, tensors, strict=True)]
            lost = [n for n, tensor in pairs if there.get(n) is not tensor or not tensor.numel()]
            if lost:
                others = ", …" * (len(lost) > 1)
                self._warn(f"lost {name}", f"channel '{name}' has lost {len(lost)} of its tensors ({lost[0]}{others})")
                found.add(name)
        return found

    def _put_in_force(self, step: int, values: dict[str, Tensor], judgement: Judgement | None, **more: Any) -> None:
        judged = judgement._asdict() if judgement else dict.fromkeys(Judgement._fields)
        decision: dict[str, Any] = {"step": step, **more, **judged}
        decision |= {"evaluations": self.evaluations, "backwards": self.backwards}
        decision |= {"sigma": {}, "entropy": {}, "summary": {}, "values": {}}
        for name, channel in self.channels.items():
            multipliers, sizes = values[name], self.sizes[name]
            limits = torch.tensor(self.limits[name], dtype=torch.float64).exp()
            at_bound = ((multipliers - limits[:, None]).abs() <= 1e-9 * limits[:, None]).any(0).double().mean()
            if self.playback is None:
                decision["sigma"][name] = self.policies[name].sigma
                decision["entropy"][name] = self.policies[name].entropy
            decision["summary"][name] = {
                "min": multipliers.min().item(),
                "mean": (multipliers @ sizes / sizes.sum()).item(),
                "max": multipliers.max().item(),
                "at_bound": at_bound.item(),
            }
            decision["values"][name] = {
                unit.name: value for unit, value in zip(channel.units, multipliers.tolist(), strict=True)
            }
            channel.set(multipliers.tolist())
        self.decision = decision

    def _checked(self, name: str, bounds: Mapping[str, Sequence[float]], arithmetic: Arithmetic) -> tuple[float, float]:
        """The channel's limits as logarithms. Raises `ValueError` where they cannot work or are not safe."""
        channel = self.channels[name]
        given = tuple(bounds.get(name, channel.bounds))
        if len(given) != 2 or not all(math.isfinite(b) for b in given) or not 0 < given[0] <= 1 <= given[1]:
            raise ValueError(
                f"sidecar bounds.{name}={list(given)} must be a least and a largest multiplier, above 0 and on either "
                "side of 1: every policy starts around 1."
            )
        played = self.playback.largest(name) if self.playback else given[1]
        channel.check(1.0 if self.mode == "fixed" else played, arithmetic)
        return math.log(given[0]), math.log(given[1])

    def _warn(self, about: str, what: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(f"{what}: the sidecar keeps its values and goes on.", RuntimeWarning, stacklevel=4)


def _one_of(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"sidecar {what} '{value}' is unknown: choose one of {', '.join(known)}.")
