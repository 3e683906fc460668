"""Means over documents, with bootstrap intervals."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.stats

RESAMPLES = 2000
LEVEL = 0.95


def mean_and_interval(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Σ sums / Σ counts and its 95 % interval, [rows, 3]: of `sums` [rows, documents] and `counts` [documents].

    The interval is a BCa bootstrap over documents (Efron 1987), NaN for fewer than two; where BCa has none, as where
    all documents agree, its ends are the percentiles'.
    """
    means = sums.sum(1) / counts.sum()
    if len(counts) < 2:
        return np.stack([means, np.full(len(sums), np.nan), np.full(len(sums), np.nan)], axis=1)
    low, high = _interval(sums, counts, "BCa")
    undefined = ~(np.isfinite(low) & np.isfinite(high))
    if undefined.any():
        low[undefined], high[undefined] = _interval(sums[undefined], counts, "percentile")
    return np.stack([means, low, high], axis=1)


def _interval(sums: np.ndarray, counts: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings(action="ignore"):  # BCa warns where it is undefined, and gives NaN
        found = scipy.stats.bootstrap(
            (sums, np.broadcast_to(counts, sums.shape)),
            lambda of, per, axis: of.sum(axis) / per.sum(axis),
            paired=True, vectorized=True, axis=-1, n_resamples=RESAMPLES, batch=100,
            confidence_level=LEVEL, method=method, rng=0,
        ).confidence_interval  # fmt: skip
    return np.array(found.low), np.array(found.high)
