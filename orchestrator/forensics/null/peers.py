"""The spread that layers of one law show, and the distance at which one differs from its peers (SCIENCE §3)."""

from __future__ import annotations

import numpy as np

CONSISTENT = 2.2219  # Qn of a Gaussian is its standard deviation over this
FEWEST = 4  # layers; fewer show no spread
# Number of layers, from `FEWEST` on → the multiple of Qn that one Gaussian layer in a thousand exceeds, by simulation.
LIMITS = (
    8.46, 17.1, 5.01, 7.43, 3.96, 5.29, 3.57, 4.50, 3.41, 4.10, 3.31, 3.86, 3.28, 3.73, 3.23, 3.62, 3.21, 3.57, 3.20,
    3.51, 3.19, 3.48, 3.18, 3.47, 3.18, 3.44, 3.18, 3.42, 3.19,
)  # fmt: skip
MANY = 3.42  # for more layers than the table has: the largest, at 33; the others lie between 3.19 and it


def spread(values: np.ndarray) -> float:
    """Qn of values [n]: the standard deviation of the larger half of a Gaussian sample, whatever the others do.

    The k-th smallest of all differences between two values, k = h(h−1)/2 with h = ⌊n/2⌋ + 1 (Rousseeuw & Croux 1993).
    """
    half = len(values) // 2 + 1
    first, second = np.triu_indices(len(values), 1)
    at = half * (half - 1) // 2 - 1
    return CONSISTENT * float(np.partition(np.abs(values[first] - values[second]), at)[at])


def limit(layers: int) -> float:
    """The distance from the median, in units of `spread`, beyond which one layer in a thousand lies by chance.

    Infinite for fewer than `FEWEST` layers.
    """
    if layers < FEWEST:
        return np.inf
    return LIMITS[layers - FEWEST] if layers - FEWEST < len(LIMITS) else MANY
