"""Rules: multipliers computed from the weights as they are, without learning (SCIENCE §6). One line in `RULES` each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sidecar.sharded import gather
from sidecar.units import Unit

Bounds = tuple[float, float]  # least and largest multiplier
SINGULAR_VALUES = 50  # AlphaDecay leaves a matrix with fewer alone


class Rule(NamedTuple):
    """A rule judges some of the units and gives them multipliers; the other units keep 1."""

    judges: Callable[[Sequence[Unit]], list[bool]]
    multipliers: Callable[[Sequence[Tensor], Bounds], list[float]]  # weights of the judged units → one for each


def has_a_tail(units: Sequence[Unit]) -> list[bool]:
    """True for the matrices that AlphaDecay judges, as its published code selects them.

    They are those in layers that have at least 50 singular values, without the very first one.
    """
    first = next((unit for unit in units if unit.layer is not None), None)
    return [
        unit.layer is not None and unit is not first and min(unit.inputs, unit.size // unit.inputs) >= SINGULAR_VALUES
        for unit in units
    ]


def alpha_decay(weights: Sequence[Tensor], bounds: Bounds) -> list[float]:
    """AlphaDecay (He et al. 2025, arXiv 2506.14562): multipliers linear in the exponents of the matrices' tails.

    The heaviest tail (smallest α) gets the least multiplier, the lightest the largest. A matrix whose exponent is not
    finite gets 1; so do all where the exponents are equal.
    """
    exponents = [tail_exponent(gather(weight.detach())) for weight in weights]
    finite = [exponent for exponent in exponents if math.isfinite(exponent)]
    least, largest = min(finite, default=1.0), max(finite, default=1.0)
    if least == largest:
        return [1.0] * len(weights)
    slope = (bounds[1] - bounds[0]) / (largest - least)
    return [bounds[0] + slope * (x - least) if math.isfinite(x) else 1.0 for x in exponents]


def tail_exponent(weight: Tensor) -> float:
    """Hill's estimate of α, the exponent of the density λ^−α of a matrix's squared singular values.

    The tail is their upper half; its least value is where the power law begins. Infinite where the tail has no spread,
    NaN for a matrix that is empty, holds a value that is not finite, or has a tail that begins at 0.
    """
    if not weight.numel() or not weight.isfinite().all():
        return math.nan
    squared = torch.linalg.svdvals(weight.float()).double().square().sort().values
    logs = squared[len(squared) // 2 :].log()
    if not logs[0].isfinite():
        return math.nan
    spread = (logs - logs[0]).sum().item()
    return 1 + len(logs) / spread if spread > 0 else math.inf


RULES: dict[str, Rule] = {"alpha_decay": Rule(has_a_tail, alpha_decay)}


def check(name: str, units: Sequence[Unit]) -> None:
    """Raise `ValueError` where the rule has fewer than two matrices to tell apart."""
    if (count := sum(RULES[name].judges(units))) < 2:
        raise ValueError(
            f"sidecar rule '{name}' compares matrices in layers with at least {SINGULAR_VALUES} singular values, and "
            f"this model has {count}: take a wider model, or another mode."
        )


def multipliers_of(
    name: str, units: Sequence[Unit], weights: Sequence[Tensor], bounds: Bounds, mean_matched: bool = False
) -> Tensor:
    """The rule's multiplier of every unit, [units], float64. Every rank must call it where weights are sharded.

    `mean_matched`: those of the judged units are divided by their parameter-weighted mean, and are then bound to
    nothing; the other units keep 1.
    """
    rule = RULES[name]
    judged = torch.tensor(rule.judges(units))
    weights_of = [weight for weight, judge in zip(weights, judged.tolist(), strict=True) if judge]
    given = torch.tensor(rule.multipliers(weights_of, bounds), dtype=torch.float64)
    if mean_matched:
        sizes = torch.tensor([float(unit.size) for unit in units], dtype=torch.float64)[judged]
        given = given * sizes.sum() / (sizes @ given)
    return torch.ones(len(units), dtype=torch.float64).masked_scatter(judged, given)


def largest(bounds: Bounds, mean_matched: bool) -> float:
    """The largest multiplier that a rule can give."""
    return bounds[1] / bounds[0] if mean_matched else bounds[1]
