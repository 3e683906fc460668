"""Thresholds of the co-magnitude above which an FFN position is saturated (SCIENCE §1)."""

from __future__ import annotations

import numpy as np

MAD_TO_STD = 1.4826  # a Gaussian's standard deviation over its MAD


def literal_threshold(c: np.ndarray) -> float:
    """mean + 3·std, as in the paper. At most a tenth of the positions can exceed it (Cantelli)."""
    return float(c.mean() + 3 * c.std())


def robust_threshold(c: np.ndarray) -> float:
    """median + 3·1.4826·MAD: outliers do not raise it."""
    median = np.median(c)
    return float(median + 3 * MAD_TO_STD * np.median(np.abs(c - median)))
