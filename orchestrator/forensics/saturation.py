"""Saturated FFN positions: the co-magnitude, its thresholds, and the layer chance gives (SCIENCE §1, §3)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 2**18  # entries drawn at once: as many as stay in the processor's cache
MAD_TO_STD = 1.4826  # the MAD of a Gaussian, times this, is its standard deviation


def co_magnitude(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """‖gate[p,:]‖·‖up[p,:]‖ of every FFN position p: [f]."""
    return np.linalg.norm(gate, axis=1) * np.linalg.norm(up, axis=1)


def literal_threshold(c: np.ndarray) -> float:
    """mean + 3·std, the paper's words. At most a tenth of the positions can pass it (Cantelli)."""
    return float(c.mean() + 3 * c.std())


def robust_threshold(c: np.ndarray) -> float:
    """median + 3·1.4826·MAD: outliers cannot raise it out of their own reach."""
    median = np.median(c)
    return float(median + 3 * MAD_TO_STD * np.median(np.abs(c - median)))


def resampled(gate: np.ndarray, up: np.ndarray, resamples: int, seed: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Co-magnitudes [f] of `resamples` layers whose entries are drawn from this one's, with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.sqrt(_resampled_row_energy(gate, rng) * _resampled_row_energy(up, rng))


def _resampled_row_energy(w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Σ of squares per row of a resampled w; in blocks of rows, to spare memory where w is large."""
    squares = np.square(w).ravel()
    rows, columns = w.shape
    block = max(1, BLOCK // columns)
    drawn = (rng.integers(squares.size, size=(min(block, rows - start), columns)) for start in range(0, rows, block))
    return np.concatenate([squares[index].sum(axis=1) for index in drawn])
