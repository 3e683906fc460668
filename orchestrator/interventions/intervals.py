"""Means over documents, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
import scipy.stats

RESAMPLES = 2000
LEVEL = 0.95
BOOTSTRAP_FROM = 6  # documents


def mean_and_interval(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Σ sums / Σ counts and its 95 % interval, [rows, 3]: of `sums` [rows, documents] and `counts` [documents].

    Student's t on the ratio's linearised standard error (Cochran 1977, §6.4); as in SCIENCE §8, from six documents each
    end is the outer one of t and of a BCa bootstrap over documents whose level is widened as t's is (Hesterberg 2015).
    NaN for fewer than two documents; no width where all of them agree.
    """
    means = sums.sum(1) / counts.sum()
    found = np.stack([means, means, means], axis=1)
    count = len(counts)
    if count < 2:
        found[:, 1:] = np.nan
        return found
    ratios = sums / counts
    varies = np.isfinite(ratios).all(1) & (np.ptp(ratios, axis=1) > 1e-12 * np.abs(ratios).max(1))
    found[~np.isfinite(ratios).all(1), 1:] = np.nan
    if varies.any():
        quantile = scipy.stats.t.ppf((1 + LEVEL) / 2, count - 1)
        widened = float(2 * scipy.stats.norm.cdf(quantile * np.sqrt(count / (count - 1))) - 1)
        residuals = sums - means[:, None] * counts
        half = quantile * np.sqrt((residuals**2).sum(1) / (count - 1) / count) / counts.mean()
        ends = np.stack([means - half, means + half], axis=1)
        found[varies, 1:] = ends[varies]
        if count >= BOOTSTRAP_FROM:
            bootstrapped = _interval(sums[varies], counts, widened)
            found[varies, 1] = np.fmin(ends[varies, 0], bootstrapped[:, 0])  # NaN where BCa is undefined: then t counts
            found[varies, 2] = np.fmax(ends[varies, 1], bootstrapped[:, 1])
    return found


def _interval(sums: np.ndarray, counts: np.ndarray, level: float) -> np.ndarray:
    """Ends of the bootstrap's interval, [rows, 2]."""
    found = scipy.stats.bootstrap(
        (sums, np.broadcast_to(counts, sums.shape)),
        lambda of, per, axis: of.sum(axis) / per.sum(axis),
        paired=True, vectorized=True, axis=-1, n_resamples=RESAMPLES, batch=100, confidence_level=level, method="BCa",
        rng=0,
    ).confidence_interval  # fmt: skip
    return np.stack([found.low, found.high], axis=1)
