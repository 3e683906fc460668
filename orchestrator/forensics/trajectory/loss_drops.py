"""Test whether events in the layers of a run coincide with drops of its loss (SCIENCE §4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy

FEWEST = 10  # intervals of a run; with fewer, an outlier cannot be told from a trend
OUTLIER = 3.0  # robust σ
NEIGHBOURS = 3  # intervals on either side from which an interval's change is predicted
LOCAL = 4  # intervals on either side from which the local σ is estimated
FIRST_STRETCH = 5  # intervals of the first stretch within which events are shifted
ROUNDING = 1e-9  # nats/token; a smaller fall is rounding

Curve = Sequence[tuple[int, float]]  # (step, nats/token), ascending steps


@dataclass(frozen=True)
class Course:
    """The intervals between readings of one run, without the first and last, which lack a neighbour."""

    drops: np.ndarray  # [intervals], true where the loss dropped
    events: np.ndarray  # [intervals], number of layers to which something happened

    @property
    def is_long(self) -> bool:
        """True where the run has `FEWEST` intervals, with the first and the last."""
        return self.drops.size + 2 >= FEWEST


@dataclass(frozen=True)
class Meeting:
    """Loss drops and events over the intervals of several runs."""

    intervals: int
    drops: int  # intervals in which the loss fell further than predicted from its neighbours
    events: int  # layers × intervals
    together: int  # events in the intervals of a drop
    expected: float | None  # of `together` by chance, under the shifts; null without drops or without events
    p: float | None  # exact, one-sided: shifts with at least as many together
    smallest_p: float | None  # over all shifts


def meet(runs: Sequence[Course]) -> Meeting:
    """Test the runs that are long enough, together.

    Losses fall and roles settle fastest early in training, so drops and events would coincide by trend alone. Two
    measures prevent that. A drop is judged against its neighbours' changes, not the whole run's. And each run's events
    are shifted circularly against its drops within stretches that double in length, where rates that fall with the
    logarithm of the step are nearly constant; all combinations of shifts count, by convolution.

    Simulated error rate: at most 4.5 % at p ≤ 0.05; power: 58 % with 4 runs of 20 intervals, 99 % with 4 of 50, 2 %
    with one of 20 (tests/benchmarks/bench_statistics.py).
    """
    judged = [run for run in runs if run.is_long]
    chances, together = np.ones(1), 0  # P(0, 1, … together)
    for one in judged:
        for start, stop in _stretches(one.drops.size):
            drops, events = one.drops[start:stop], one.events[start:stop]  # shift 0 is the observation
            under = np.array([int(np.roll(events, by)[drops].sum()) for by in range(events.size)])
            chances = np.convolve(chances, np.bincount(under) / under.size)
            together += int(under[0])
    dropped = sum(int(run.drops.sum()) for run in judged)
    happened = sum(int(run.events.sum()) for run in judged)
    testable = bool(dropped and happened)
    return Meeting(
        sum(run.drops.size for run in judged), dropped, happened, together,
        expected=float(np.arange(chances.size) @ chances) if testable else None,
        p=min(1.0, float(chances[together:].sum())) if testable else None,
        smallest_p=float(chances[np.flatnonzero(chances)[-1]]) if testable else None,
    )  # fmt: skip


def evaluated(steps: Sequence[int], curve: Curve) -> list[int]:
    """Return the steps that the curve covers, without those that no evaluation tells from the one before."""
    at = np.array([step for step, _ in curve])
    kept: list[int] = []
    for step in steps:
        known = int(np.searchsorted(at, step, side="right"))  # evaluations up to here
        before = int(np.searchsorted(at, kept[-1], side="right")) if kept else 0
        if before < known and step <= at[-1]:
            kept.append(step)
    return kept


def drops_in(curve: Curve, steps: Sequence[int]) -> np.ndarray:
    """Mark the intervals between `steps` in which the loss drops, without the first and last, [steps − 3].

    The curve covers all steps; it is interpolated between evaluations.
    """
    # a median of three removes a single bad evaluation and does not spread a drop over its neighbours
    smooth = scipy.ndimage.median_filter([loss for _, loss in curve], size=3, mode="nearest")
    return outliers(-np.interp(steps, [step for step, _ in curve], smooth), steps, ROUNDING)


def outliers(values: np.ndarray, steps: Sequence[int], least: float) -> np.ndarray:
    """Mark the changes between values [K + 1], without the first and last, that are upward outliers, [K − 2].

    Changes are taken per unit of `clock`, or the longer of unequal intervals would stand out; those by at most `least`
    are none.
    A change is predicted from the means of its two neighbours at equal distances (their median over the distances),
    which is exact along a straight trend. σ is the larger of the run's and the local one: noise falls over training.
    """
    count = len(values) - 1
    if count < 3:
        return np.zeros(0, dtype=bool)
    lengths = np.diff(clock(steps))
    scale = np.median(lengths) / lengths
    changes = np.diff(values) * scale
    expected = [
        np.median([(changes[i - j] + changes[i + j]) / 2.0 for j in range(1, min(NEIGHBOURS, i, count - 1 - i) + 1)])
        for i in range(1, count - 1)
    ]
    excess = changes[1:-1] - expected  # [K − 2]
    size = np.abs(excess)
    starts = np.clip(np.arange(size.size) - LOCAL, 0, max(0, size.size - 2 * LOCAL - 1))
    around = np.array([np.median(size[start : start + 2 * LOCAL + 1]) for start in starts])
    return excess > OUTLIER * 1.4826 * np.maximum(np.median(size), around) + least * scale[1:-1]


def clock(steps: Sequence[int]) -> np.ndarray:
    """A time of each step in which the intervals of a run that was read at doubling, then at equal distances are alike.

    A unit is the first interval, then a doubling of the step, and in the end the longest interval. Where all are equal,
    they are the unit.
    """
    at = np.asarray(steps, dtype=np.float64)
    first, longest = at[1] - at[0], np.diff(at).max()
    if (np.diff(at) == longest).all():
        return np.arange(at.size, dtype=np.float64)
    begin, end = first / np.log(2), longest / np.log(2)  # where a doubling is as long as either
    doubled = np.log2(np.clip(at, begin, end) / begin)
    return np.asarray(np.minimum(at, begin) / first + doubled + np.maximum(at - end, 0) / longest)


def _stretches(count: int) -> list[tuple[int, int]]:
    """Split `count` intervals into (start, stop), each twice as long as the one before; the last has the rest."""
    bounds, length = [0], FIRST_STRETCH
    while count - bounds[-1] >= length + FIRST_STRETCH:
        bounds.append(bounds[-1] + length)
        length *= 2
    return list(pairwise([*bounds, count]))
