"""How far layers part from each other: the spread of attention's share of the energy over them (SCIENCE §4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.compare.pairs import Pair
from orchestrator.compare.statistics import interval, sign_flip_p


@dataclass(frozen=True)
class Symmetry:
    """One arm beside the baseline at their newest common readings, means over the seed pairs."""

    arm: str
    n: int
    a: float  # standard deviation of attention_share over the baseline's layers
    b: float  # and over the arm's
    range_a: float  # largest minus smallest
    range_b: float
    delta: float  # b − a
    low: float | None  # 95 % interval of delta
    high: float | None
    method: str
    p: float | None  # two-sided sign-flip, exact up to 16 pairs


def symmetry(arm: str, pairs: list[Pair]) -> Symmetry | None:
    """The spread of both arms' layers; None where no pair has a reading with every layer's share."""
    found = []
    for pair in (pair for pair in pairs if pair.arm == arm and pair.common_steps):
        shares = [_shares(cell.readings[pair.common_steps[-1]]) for cell in (pair.a, pair.b)]
        if all(share is not None for share in shares):
            found.append([(float(np.std(share)), float(np.ptp(share))) for share in shares if share is not None])
    if not found:
        return None
    x = np.array(found)  # [n, arms, std and range]
    difference = x[:, 1, 0] - x[:, 0, 0]
    mean, within = x.mean(axis=0), interval(difference, 0.95)
    return Symmetry(
        arm, len(x), a=mean[0, 0].item(), b=mean[1, 0].item(), range_a=mean[0, 1].item(), range_b=mean[1, 1].item(),
        delta=difference.mean().item(), low=within.low, high=within.high, method=within.method,
        p=sign_flip_p(difference),
    )  # fmt: skip


def _shares(reading: dict[str, Any]) -> np.ndarray | None:
    """[layers]; None where a layer lacks it, or there is only one."""
    values = [layer["measures"].get("attention_share") for layer in reading["layers"]]
    return None if len(values) < 2 or None in values else np.array(values, dtype=np.float64)
