"""The steps at which the layers of a run commit to what they end as, against reshuffled readings (SCIENCE §4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.forensics.reading import Reading
from orchestrator.forensics.trajectory.agreement import KINDS, agreement, changes, scorings_of

FEWEST = 8  # readings; with fewer, nothing is said of a trajectory
EARLY = 0.3  # of the run's steps: the paper's "by step 20K-30K" of 100K
LEVELS = (0.5, 0.9)  # of `held`, whose first readings are reported
SHUFFLES = 1999


@dataclass(frozen=True)
class Commitment:
    """One run's course towards its last reading, by roles or by scores, under one scoring.

    `held[k]` is the agreement that reading k and all later ones have with the last: by roles, the share of the layers
    that have their final role from there on. Chance reshuffles all readings but the last.
    """

    kind: str  # roles · scores
    scoring: str
    layers: int  # that count: those that end with a role; by scores, all
    depth: int
    steps: np.ndarray  # [readings]
    held: np.ndarray  # [readings]
    by_chance: np.ndarray  # [shuffles, readings]
    changed: np.ndarray  # [readings − 1], see `agreement.changes`

    def reached(self, level: float) -> int:
        """The step of the first reading from which `held` is at least `level`."""
        return int(self.steps[np.argmax(self.held >= level)])

    def reached_by_chance(self, level: float) -> float:
        """The mean of that step over the shuffles."""
        return float(self.steps[np.argmax(self.by_chance >= level, axis=1)].mean())

    @property
    def at_early(self) -> int:
        """Index of the last reading that is not after `EARLY` of the run."""
        return int(np.flatnonzero(self.steps <= EARLY * self.steps[-1])[-1])

    @property
    def means(self) -> tuple[float, np.ndarray]:
        """The mean of `held` over the readings before the last, and under each shuffle: what p is about."""
        return float(self.held[:-1].mean()), self.by_chance[:, :-1].mean(axis=1)

    @property
    def p(self) -> float:
        """One-sided p of this run, see `p_of`."""
        return p_of([self])


def commitments(readings: Sequence[Reading], steps: Sequence[int]) -> list[Commitment]:
    """The commitment by roles and by scores under each scoring that all readings hold.

    Empty with fewer than `FEWEST` readings. Those for which no layer counts are left out.
    """
    if len(readings) < FEWEST or not steps[0] < EARLY * steps[-1]:
        return []
    found = []
    for scoring in scorings_of(readings):
        scored = [reading.by(scoring) for reading in readings]
        for kind in KINDS:
            agrees, depth = agreement(scored, kind), len(readings[-1].layers)
            if agrees.shape[1]:
                layers = agrees.shape[1] if kind == KINDS[0] else depth
                by_chance = held_by_chance(agrees)
                held = held_from(agrees)
                found.append(
                    Commitment(kind, scoring, layers, depth, np.array(steps), held, by_chance, changes(scored, kind))
                )
    return found


def held_from(agrees: np.ndarray) -> np.ndarray:
    """The agreement [readings, units] that each reading and all later ones have, mean over the units, [readings].

    Leading axes are kept.
    """
    backwards = np.flip(agrees, axis=-2)
    return np.flip(np.minimum.accumulate(backwards, axis=-2), axis=-2).mean(axis=-1)


def held_by_chance(agrees: np.ndarray) -> np.ndarray:
    """The same under `SHUFFLES` orders of the readings with the last one in its place, [shuffles, readings].

    Readings are moved whole, so that layers which change together do so by chance, too.
    """
    rng, before = np.random.default_rng(0), len(agrees) - 1
    orders = rng.permuted(np.tile(np.arange(before), (SHUFFLES, 1)), axis=1)
    orders = np.hstack([orders, np.full((SHUFFLES, 1), before)])
    return np.concatenate([held_from(agrees[part]) for part in np.array_split(orders, 20)])  # few at once: memory


def p_of(runs: Sequence[Commitment]) -> float:
    """One-sided p of several runs: shuffles with at least as large a mean of `held` over the runs.

    It is small where roles settle; it is uniform where the readings of each run are exchangeable.
    """
    observed = sum(run.means[0] for run in runs)
    draws = np.sum([np.random.default_rng(i).permuted(run.means[1]) for i, run in enumerate(runs)], axis=0)
    return float((1 + np.count_nonzero(draws >= observed - 1e-12)) / (1 + SHUFFLES))


@dataclass(frozen=True)
class Speed:
    """Mean change per 1000 steps before and after `EARLY` of the run, between readings that lie equally far apart."""

    apart: int  # steps: the most frequent distance of two readings
    before: float
    after: float


def speed_of(steps: Sequence[int] | np.ndarray, changed: np.ndarray) -> Speed | None:
    """The speed of a run with these `changes` between its steps; None without an interval of that length on each side.

    Readings that flicker show more changes the denser they are: only intervals of one length compare.
    """
    lengths = np.diff(steps)
    sizes, counts = np.unique(lengths, return_counts=True)
    apart = int(sizes[len(sizes) - 1 - np.argmax(counts[::-1])])
    ends, border = np.asarray(steps[1:]), EARLY * steps[-1]
    equal = lengths == apart
    sides = [changed[equal & (ends <= border)], changed[equal & (ends - apart >= border)]]
    if not all(side.size for side in sides):
        return None
    before, after = (float(side.mean()) * 1000 / apart for side in sides)
    return Speed(apart, before, after)
