"""Test whether role transitions coincide with loss drops (SCIENCE §4, "Transitions and loss drops")."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.pairs import validation_curves
from orchestrator.analysis.statistics import ALPHA
from orchestrator.forensics.reading import roles_of
from orchestrator.forensics.roles.routing import state

FEWEST = 10  # intervals of a cell; with fewer, an outlier cannot be told from a trend
OUTLIER = 3.0  # robust σ
NEIGHBOURS = 3  # intervals on either side from which an interval's change is predicted
LOCAL = 4  # intervals on either side from which the local σ is estimated
FIRST_STRETCH = 5  # intervals of the first stretch within which transitions are shifted
ROUNDING = 1e-9  # nats/token; a smaller fall is rounding


@dataclass(frozen=True)
class Coincidence:
    """Loss drops of one domain and role transitions of one arm, over the intervals between its readings."""

    arm: str
    domain: str
    intervals: int  # of all cells with at least FEWEST; without each cell's first and last, which lack a neighbour
    drops: int  # intervals in which validation loss fell further than predicted from its neighbours
    transitions: int  # layers × intervals whose state changed
    together: int  # transitions in the intervals of a drop
    expected: float | None  # of `together` by chance, under the shifts
    p: float | None  # exact, one-sided: shifts with at least as many together
    smallest_p: float | None  # over all shifts
    drop_steps: dict[int, list[int]]  # seed → where those intervals end
    sentence: str  # the reason why nothing can be tested, or empty


def coincide(arm: str, cells: list[CellResult], domain: str, domains: list[str]) -> Coincidence | None:
    """Test one domain; None where no cell was read twice. `mean` is the mean of `domains`.

    Losses fall and roles settle fastest early in training, so drops and transitions would coincide by trend alone.
    Two measures prevent that. A drop is judged against its neighbours' changes, not the whole run's. And each cell's
    transitions are shifted circularly against its drops within stretches that double in length, where rates that
    fall with the logarithm of the step are nearly constant; all combinations of shifts count, by convolution.

    Simulated error rate: at most 4.5 % at p ≤ 0.05; power: 58 % with 4 cells of 20 intervals, 99 % with 4 of 50, 2 %
    with one of 20 (tests/benchmarks/bench_statistics.py).
    """
    read = [found for cell in cells if (found := _series(cell, domain, domains)) is not None]
    if not read:
        return None
    judged = [one for one in read if one.intervals >= FEWEST]
    chances, together = np.ones(1), 0  # P(0, 1, … together)
    for one in judged:
        for start, stop in _stretches(one.drops.size):
            drops, moved = one.drops[start:stop], one.moved[start:stop]  # shift 0 is the observation
            under = np.array([int(np.roll(moved, by)[drops].sum()) for by in range(moved.size)])
            chances = np.convolve(chances, np.bincount(under) / under.size)
            together += int(under[0])
    dropped, changed = sum(int(one.drops.sum()) for one in judged), sum(int(one.moved.sum()) for one in judged)
    best = float(chances[np.flatnonzero(chances)[-1]])
    testable = dropped and changed
    return Coincidence(
        arm, domain, intervals=sum(one.drops.size for one in judged), drops=dropped,
        transitions=changed, together=together,
        expected=float(np.arange(chances.size) @ chances) if testable else None,
        p=min(1.0, float(chances[together:].sum())) if testable else None, smallest_p=best if testable else None,
        drop_steps={one.seed: one.steps[one.drops].tolist() for one in judged},
        sentence=_sentence(max(one.intervals for one in read), len(judged), dropped, changed, best),
    )  # fmt: skip


def _sentence(most: int, judged: int, drops: int, transitions: int, best: float) -> str:
    if not judged:
        return f"{most} interval{'s' * (most != 1)} between readings cannot tell drop from trend: {FEWEST} are needed."
    missing = [name for name, count in (("loss drop", drops), ("role transition", transitions)) if not count]
    if missing:
        return f"There is no {' and no '.join(missing)}, so nothing can coincide."
    return f"With so few drops and transitions, p cannot fall below {best:.2g}." if best > ALPHA else ""


class _Series(NamedTuple):
    """A cell's intervals between readings, without the first and the last."""

    seed: int
    intervals: int  # K, with the first and the last
    steps: np.ndarray  # [K − 2], at which each ends
    drops: np.ndarray  # [K − 2], true where the loss dropped
    moved: np.ndarray  # [K − 2], layers that changed state


def _series(cell: CellResult, domain: str, domains: list[str]) -> _Series | None:
    curve = validation_curves(cell, domains)[domain]
    steps = [step for step in cell.readings if curve and curve[0][0] <= step <= curve[-1][0]]
    if len(steps) < 2:
        return None
    # a median of three removes a single bad evaluation and does not spread a drop over its neighbours
    smooth = scipy.ndimage.median_filter([loss for _, loss in curve], size=3, mode="nearest")
    changes = np.diff(np.interp(steps, [step for step, _ in curve], smooth))  # [K]
    states = [[state(role) for role in roles_of(cell.readings[step])] for step in steps]
    moved = [sum(x != y for x, y in zip(before, after, strict=True)) for before, after in pairwise(states)]
    return _Series(cell.seed, len(changes), np.array(steps[1:])[1:-1], _drops(changes), np.array(moved)[1:-1])


def _drops(changes: np.ndarray) -> np.ndarray:
    """Mark the changes [K], without the first and last, that are downward outliers, [K − 2].

    A change is predicted from the means of its two neighbours at equal distances (their median over the distances),
    which is exact along a straight trend. σ is the larger of the run's and the local one: noise falls over training.
    """
    count = len(changes)
    if count < 3:
        return np.zeros(0, dtype=bool)
    expected = [
        np.median([(changes[i - j] + changes[i + j]) / 2.0 for j in range(1, min(NEIGHBOURS, i, count - 1 - i) + 1)])
        for i in range(1, count - 1)
    ]
    excess = changes[1:-1] - expected  # [K − 2]
    size = np.abs(excess)
    starts = np.clip(np.arange(size.size) - LOCAL, 0, max(0, size.size - 2 * LOCAL - 1))
    around = np.array([np.median(size[start : start + 2 * LOCAL + 1]) for start in starts])
    return excess < -OUTLIER * 1.4826 * np.maximum(np.median(size), around) - ROUNDING


def _stretches(count: int) -> list[tuple[int, int]]:
    """Split `count` intervals into (start, stop), each twice as long as the one before; the last has the rest."""
    bounds, length = [0], FIRST_STRETCH
    while count - bounds[-1] >= length + FIRST_STRETCH:
        bounds.append(bounds[-1] + length)
        length *= 2
    return list(pairwise([*bounds, count]))
