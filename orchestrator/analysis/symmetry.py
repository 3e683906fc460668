"""Measure symmetry between layers: the spread of attention's share over them, of energy and of writes (SCIENCE §4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.common_step import common_step_of_pairs
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.sign_flip import p_two_sided
from orchestrator.analysis.statistics import interval
from orchestrator.forensics.reading import profile, spread

PAPER_SPREAD = {"the paper's vanilla model": 0.014, "the paper's reward-driven model": 0.13}  # §7


@dataclass(frozen=True)
class Symmetry:
    """The spread of a share in one arm and in the baseline at their common step, means over the pairs read there."""

    arm: str
    step: int
    n: int
    a: float  # standard deviation of the share over the baseline's layers
    b: float  # the same over the arm's layers
    range_a: float  # largest minus smallest
    range_b: float
    delta: float  # b − a
    low: float | None  # 95 % interval of delta
    high: float | None
    method: str
    p: float | None  # two-sided sign-flip
    sentence: str  # caveats, or empty


def symmetry(arm: str, pairs: list[Pair], measure: str = "attention_share") -> Symmetry | None:
    """Compare the spread of `measure` in both arms; None where no pair has a reading with it of every layer."""
    at = common_step_of_pairs(arm, pairs)
    if at.step is None:
        return None
    found = []  # [n, arms, std and range]
    for pair in at.read:
        readings = [cell.readings[at.step] for cell in pair.cells]
        shares = [profile(reading, measure) for reading in readings]
        spreads = [spread(reading, measure) for reading in readings]
        if None not in spreads:
            found.append([(std, float(np.ptp(x))) for std, x in zip(spreads, shares, strict=True) if x is not None])
    if not found:
        return None
    x = np.array(found)
    difference = x[:, 1, 0] - x[:, 0, 0]
    mean, within = x.mean(axis=0), interval(difference, 0.95)
    untrained = "These are the layers before training." if at.untrained else ""
    return Symmetry(
        arm, at.step, len(x), a=mean[0, 0].item(), b=mean[1, 0].item(), range_a=mean[0, 1].item(),
        range_b=mean[1, 1].item(), delta=difference.mean().item(), low=within.low, high=within.high,
        method=within.method, p=p_two_sided(difference), sentence=" ".join(filter(None, [untrained, at.unread_note])),
    )  # fmt: skip
