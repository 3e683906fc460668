"""A screen of many factors in few runs: a Plackett–Burman design (1946) with its foldover (SCIENCE §6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard

Array = NDArray[np.float64]

GENERATOR = (1, 1, -1, 1, 1, 1, -1, -1, -1, 1, -1)  # the design of 12 runs is its rotations, and a row of -1
MOST = 15  # factors; the next design, of 20 runs, is neither


def design(factors: int) -> Array:
    """The level, −1 or 1, of every factor in every run, [runs, factors]; each odd row is minus the one before.

    The 4, 8, 12 or 16 even rows are orthogonal and balanced.
    """
    runs = 4 * math.ceil((factors + 1) / 4)
    if runs == 12:
        rows = np.array([*(np.roll(GENERATOR, shift) for shift in range(11)), [-1] * 11], dtype=float)
    else:
        rows = hadamard(runs)[:, 1:].astype(float)
    rows = rows[:, :factors]
    return np.stack([rows, -rows], axis=1).reshape(-1, factors)


def main_effects(levels: Array, losses: Sequence[float | None]) -> tuple[Array, Array]:
    """Every factor's mean difference in loss between its two levels, and the standard error of that, [factors] each.

    `levels`: of `design`, whose runs may have no loss; both runs of such a pair are left out. Where fewer pairs
    than factors are left, or fewer than two, all effects are 0, with infinite errors.
    """
    pairs = np.array([math.nan if loss is None else loss for loss in losses], dtype=float).reshape(-1, 2)
    known = np.isfinite(pairs).all(axis=1)
    if known.sum() < 2 or np.linalg.matrix_rank(levels[::2][known]) < levels.shape[1]:
        return np.zeros(levels.shape[1]), np.full(levels.shape[1], math.inf)
    plus, minus = pairs[known].T
    odd, even = (plus - minus) / 2, (plus + minus) / 2  # an interaction of two factors is even
    solve = np.linalg.pinv(levels[::2][known])
    return 2 * solve @ odd, 2 * even.std(ddof=1) * np.sqrt((solve**2).sum(axis=1))
