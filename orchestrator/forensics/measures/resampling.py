"""Sums over resampled entries, drawn without drawing the entries (SCIENCE §3).

The null redraws every tensor's entries with replacement. The measures use only sums of their squares over rows,
columns and heads, and such sums can be drawn directly: the few squares above a threshold (the tail, which decides
outliers) are drawn one by one, and the sum of the many below it (the bulk, which is bounded) comes from the gamma law
with its mean, variance and skewness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TAIL = 9.0  # squares above this many mean squares are drawn one by one: 0.3 % of Gaussian entries
KEPT = 2**16  # tail values kept per tensor; a larger tail is drawn from a sample of itself
BLOCK = 2**18  # entries squared at once
ROUNDING = 1e-6  # a spread below this share of the mean is rounding
LARGEST = 100.0  # skewness of a sum; squares below the threshold stay far below it


@dataclass(frozen=True)
class Entries:
    """The squared entries of one tensor: cumulants of those up to the threshold, and those above it."""

    count: int
    mean: float  # of all squares
    bulk: tuple[float, float, float]  # mean, variance, third central moment of the squares up to the threshold
    tail: np.ndarray  # squares above it, float32
    tail_share: float  # of the entries


def entries_of(w: Tensor) -> Entries:
    """The squared entries of a matrix [m, n]; one pass for their mean, one for the rest."""
    rows = max(1, BLOCK // w.shape[1])
    mean = sum(float(block.square().sum(dtype=torch.float64)) for block in w.split(rows)) / w.numel()
    if mean == 0:
        return Entries(w.numel(), 0.0, (0.0, 0.0, 0.0), np.empty(0, np.float32), 0.0)
    powers, tails = np.zeros(3), []
    for block in w.split(rows):
        squares = block.square().div_(mean)
        above = squares > TAIL
        tails.append((squares[above].double() * mean).float().cpu().numpy())
        squares.masked_fill_(above, 0.0)
        second = squares.square()
        sums = (squares.sum(dtype=torch.float64), second.sum(dtype=torch.float64), squares.mul_(second).sum())
        powers += [float(total) for total in sums]
    tail = np.concatenate(tails)
    first, second, third = powers / (w.numel() - len(tail)) * [mean, mean**2, mean**3]
    variance = max(second - first**2, 0.0)
    skew = third - 3 * first * second + 2 * first**3
    share = len(tail) / w.numel()
    if len(tail) > KEPT:
        tail = np.random.default_rng(0).choice(tail, KEPT, replace=False)
    return Entries(w.numel(), mean, (first, variance, skew), tail, share)


def resampled_sums(entries: Entries, groups: int, weights: np.ndarray | int, rng: np.random.Generator) -> np.ndarray:
    """Σ_p weights[p]·s_p for `groups` independent draws of squares s from `entries`: [groups].

    `weights`: non-negative [n], or the number n of squares to sum where all weights are 1.
    """
    size = weights if isinstance(weights, int) else len(weights)
    counts = rng.binomial(size, entries.tail_share, groups)  # tail entries of each group
    group = np.repeat(np.arange(groups), counts)
    values = rng.choice(entries.tail, counts.sum()) if len(entries.tail) else np.empty(0)
    if isinstance(weights, int):
        powers = [(size - counts).astype(np.float64)] * 3  # Σ weightʲ over what is left to the bulk, j = 1, 2, 3
    else:
        drawn = weights[rng.integers(size, size=counts.sum())]
        values = values * drawn
        powers = [(weights**j).sum() - np.bincount(group, drawn**j, groups) for j in (1, 2, 3)]
    mean, variance, skew = (moment * np.maximum(power, 0) for moment, power in zip(entries.bulk, powers, strict=True))
    return np.asarray(_gamma(mean, variance, skew, rng) + np.bincount(group, values, groups))


def _gamma(mean: np.ndarray, variance: np.ndarray, skew: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws with these cumulants, never negative: shifted gamma, mirrored where the skew is negative."""
    std = np.sqrt(variance)
    std = np.where(std > ROUNDING * mean, std, 0.0)  # entries that are all equal
    skewness = np.divide(skew, std**3, out=np.zeros_like(std), where=std > 0)
    skewness = np.where(np.abs(skewness) < 1e-4, 1e-4, np.clip(skewness, -LARGEST, LARGEST))
    shape = 4 / skewness**2
    standard = np.sign(skewness) * (rng.gamma(shape) - shape) / np.sqrt(shape)
    return np.maximum(mean + std * standard, 0.0)
