"""The singular values of a matrix, and what is read off them."""

from __future__ import annotations

import numpy as np
import torch

# Below this ratio of Gram eigenvalues, squaring the matrix costs digits that the entropy would notice.
ILL_CONDITIONED = 1e-10


def singular_values(w: np.ndarray) -> np.ndarray:
    """Singular values of w [m, n], ascending, in float64: [min(m, n)].

    From the eigenvalues of the smaller Gram matrix, several times faster than an SVD; from an SVD where the
    matrix is so close to rank-deficient that rounding would show.
    """
    matrix = torch.from_numpy(w)  # torch's linear algebra, so that torch's thread setting holds
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    eigenvalues = torch.linalg.eigvalsh(gram)
    if eigenvalues[0] < ILL_CONDITIONED * eigenvalues[-1]:
        return torch.linalg.svdvals(matrix).flip(0).numpy()
    return eigenvalues.clamp_min(0).sqrt().numpy()


def perplexity(masses: np.ndarray) -> float | None:
    """exp of the Shannon entropy of non-negative masses, once normalised; 1…len. None where all are zero."""
    total = masses.sum()
    if total == 0:
        return None
    p = masses[masses > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))
