"""The learner of one channel: proposes a multiplier for each group of units, and learns from the reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sidecar.channels import Channel
from sidecar.credit import CREDITS
from sidecar.features import Observation, features_of
from sidecar.policy import GaussianPolicy, bounded, mean_matched, mean_matched_slopes
from sidecar.reward import Judgement
from sidecar.settings import Settings
from sidecar.units import groups_of


class Learner:
    """Draws the channel's log-multipliers, one per group of units, and improves the policy that it draws from.

    Raises `ValueError` for bounds that cannot work.
    """

    def __init__(
        self,
        channel: Channel,
        parameters: Mapping[str, Tensor],
        settings: Settings,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.channel, self.settings, self.optimizer = channel, settings, optimizer
        self.bounds = _checked(channel.name, tuple((settings.bounds or {}).get(channel.name, channel.bounds)))
        self.limits = (math.log(self.bounds[0]), math.log(self.bounds[1]))
        self.groups = torch.tensor(groups_of(channel.units, settings.share))
        self.sizes = torch.tensor([unit.size for unit in channel.units], dtype=torch.float64)
        self.weights = [[parameters[name] for name in names] for names in channel.weights()]
        width = self._features(0).shape[1]
        self.policy = GaussianPolicy(settings.policy, width, settings.sigma, settings.seed, channel.name)
        self.credit = CREDITS[settings.credit](settings.baseline_decay, settings.unexplained)
        self.drawn: dict[str, Tensor] = {}  # features, noise and sample of the proposal in force

    def draw(self, step: int) -> None:
        """Draw the proposal that replaces the one in force."""
        features = self._features(step)
        sample, noise = self.policy.sample(features)
        self.drawn = {"features": features, "sample": sample, "noise": noise}

    def multipliers(self) -> Tensor:
        """The multipliers of the proposal in force, [units]."""
        log_values = self.drawn["sample"][self.groups]
        if self.settings.mean_matched:
            return mean_matched(log_values, self.sizes, self.limits)
        return bounded(log_values, self.limits)

    def learn(self, judgement: Judgement, slopes: Tensor) -> None:
        """Take one step of the policy; `slopes` [units] are summed within each group."""
        if self.settings.mean_matched:
            slopes = mean_matched_slopes(slopes, self.drawn["sample"][self.groups], self.sizes, self.limits)
        noise = self.drawn["noise"]
        pooled = torch.zeros(len(noise), dtype=torch.float64).index_add(0, self.groups, slopes)
        step = self.credit.step(judgement, noise, self.policy.sigma, pooled)
        self.policy.update(self.drawn["features"], step, self.settings.policy_lr, self.settings.entropy, self.limits)

    def pooled(self, multipliers: Tensor) -> Tensor:
        """[units]: the parameter-weighted mean of `multipliers` in each group of units that share one."""
        groups, sizes = self.groups, self.sizes
        if len(groups.unique()) == len(groups):
            return multipliers
        total = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
        mean = total.index_add(0, groups, multipliers * sizes) / total.index_add(0, groups, sizes)
        return mean[groups]

    def summary(self, multipliers: Tensor) -> dict[str, float]:
        """`min`, parameter-weighted `mean`, `max`, and the share of units `at_bound`."""
        limits = torch.tensor(self.limits, dtype=torch.float64).exp()
        at_bound = ((multipliers - limits[:, None]).abs() <= 1e-9 * limits[:, None]).any(0).double().mean()
        return {
            "min": multipliers.min().item(),
            "mean": (multipliers @ self.sizes / self.sizes.sum()).item(),
            "max": multipliers.max().item(),
            "at_bound": at_bound.item(),
        }

    def lost_tensors(self, present: Mapping[str, Tensor]) -> list[str]:
        """Names of the channel's parameters that are not among the `present` ones: pruned, replaced or emptied."""
        governed = zip(self.channel.weights(), self.weights, strict=True)
        pairs = [pair for names, tensors in governed for pair in zip(names, tensors, strict=True)]
        return [name for name, tensor in pairs if present.get(name) is not tensor or not tensor.numel()]

    def state_dict(self) -> dict[str, Any]:
        """The policy, its credit and the last draw, JSON-able."""
        return {
            "policy": self.policy.state_dict(),
            "credit": self.credit.state_dict(),
            "drawn": {name: tensor.tolist() for name, tensor in self.drawn.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises `ValueError` where the features differ in number."""
        self.policy.load_state_dict(state["policy"])
        self.credit.load_state_dict(state["credit"])
        self.drawn = {name: torch.tensor(values, dtype=torch.float64) for name, values in state["drawn"].items()}

    def _features(self, step: int) -> Tensor:
        """[groups, features]: means over the units of each group."""
        momenta = {}
        if self.optimizer is not None and "momentum_alignment" in self.settings.features:
            momenta = {p: s["exp_avg"] for p, s in self.optimizer.state.items() if "exp_avg" in s}
        progress = step / self.settings.steps if self.settings.steps else 0.0
        by_unit = features_of(self.settings.features, Observation(self.channel.units, self.weights, momenta, progress))
        total = torch.zeros(int(self.groups.max()) + 1, by_unit.shape[1], dtype=torch.float64)
        return total.index_add(0, self.groups, by_unit) / torch.bincount(self.groups)[:, None]


def _checked(name: str, bounds: Sequence[float]) -> tuple[float, float]:
    if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or not 0 < bounds[0] <= 1 <= bounds[1]:
        raise ValueError(
            f"sidecar bounds.{name}={list(bounds)} must be a least and a largest multiplier with "
            "0 < least ≤ 1 ≤ largest, because policies start around 1."
        )
    return bounds[0], bounds[1]
