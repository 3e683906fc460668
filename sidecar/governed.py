"""The limits of one channel: the bounds of its multipliers, and the units that share one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sidecar.channels import Channel
from sidecar.policy import bounded, mean_matched
from sidecar.settings import Settings
from sidecar.units import groups_of


class Governed:
    """One channel and the limits of its multipliers. Raises `ValueError` for bounds that cannot work."""

    def __init__(self, channel: Channel, parameters: Mapping[str, Tensor], settings: Settings) -> None:
        self.channel, self.settings = channel, settings
        self.bounds = _checked(channel.name, tuple((settings.bounds or {}).get(channel.name, channel.bounds)))
        self.limits = (math.log(self.bounds[0]), math.log(self.bounds[1]))
        self.groups = torch.tensor(groups_of(channel.units, settings.share))
        self.sizes = torch.tensor([unit.size for unit in channel.units], dtype=torch.float64)
        self.weights = [[parameters[name] for name in names] for names in channel.weights()]

    def within(self, log_values: Tensor) -> Tensor:
        """The multipliers [units] of these logarithms, within the bounds; their mean is 1 where that is set."""
        if self.settings.mean_matched:
            return mean_matched(log_values, self.sizes, self.limits)
        return bounded(log_values, self.limits)

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


def _checked(name: str, bounds: Sequence[float]) -> tuple[float, float]:
    if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or not 0 < bounds[0] <= 1 <= bounds[1]:
        raise ValueError(
            f"sidecar bounds.{name}={list(bounds)} must be a least and a largest multiplier with "
            "0 < least ≤ 1 ≤ largest, because policies start around 1."
        )
    return bounds[0], bounds[1]
