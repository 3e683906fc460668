"""Saturated FFN positions: the co-magnitude and its thresholds (SCIENCE §1)."""

from __future__ import annotations

import numpy as np

MAD_TO_STD = 1.4826  # the MAD of a Gaussian, times this, is its standard deviation


def literal_threshold(c: np.ndarray) -> float:
    """mean + 3·std, the paper's words. At most a tenth of the positions can pass it (Cantelli)."""
    return float(c.mean() + 3 * c.std())


def robust_threshold(c: np.ndarray) -> float:
    """median + 3·1.4826·MAD: outliers cannot raise it out of their own reach."""
    median = np.median(c)
    return float(median + 3 * MAD_TO_STD * np.median(np.abs(c - median)))
