"""Singular values of matrices, several at once, and functions of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

ROUNDING = 0.25  # error of a Gram's small eigenvalues, in epsilons of the largest (of matrices with few small ones)
TOLERANCE = 1e-4  # of ln(effective rank): error from rounding above which precision is raised
ROWS = 4096  # rows of a tall matrix that are converted to float64 at once


def gram(w: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """wᵀw [n, n] of w [m, n]: in float32 on a CPU, in float64 on a GPU (which may round float32 to TF32)."""
    dtype = dtype or (torch.float64 if w.is_cuda else torch.float32)
    if dtype == w.dtype == torch.float32:
        x = w.numpy()
        return torch.from_numpy(x.T @ x)  # numpy sees the symmetry, which halves the work; torch does not
    total = torch.zeros(w.shape[1], w.shape[1], dtype=dtype, device=w.device)
    for block in w.split(ROWS):
        converted = block.to(dtype)
        total.addmm_(converted.T, converted)
    return total


def spectra(matrices: Mapping[str, Tensor], grams: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Singular values of each float32 matrix [m, n], ascending, float64: [min(m, n)].

    They are the roots of the eigenvalues of the smaller Gram matrix, several times faster than a singular value
    decomposition. Where rounding affects their entropy (`is_rounded`), the Gram is computed again in float64, and if
    that is not enough, the matrix is decomposed. `grams`: smaller Grams that are already known, by name.
    """
    tall = {name: w if w.shape[0] >= w.shape[1] else w.T for name, w in matrices.items()}
    small = {name: grams[name] if name in grams else gram(w) for name, w in tall.items()}
    return {name: _finished(tall[name], found) for name, found in _eigenvalues(small).items()}


def _eigenvalues(grams: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Eigenvalues [n] of each symmetric matrix, ascending; those of one size in one batch.

    By torch, whose LAPACK lets other threads run.
    """
    result: dict[str, np.ndarray] = {}
    for size in {len(g) for g in grams.values()}:
        names = [name for name, g in grams.items() if len(g) == size]
        batch = torch.stack([grams[name] for name in names]) if len(names) > 1 else grams[names[0]][None]
        result |= dict(zip(names, torch.linalg.eigvalsh(batch).cpu().numpy(), strict=True))
    return result


def _finished(w: Tensor, eigenvalues: np.ndarray) -> np.ndarray:
    """Singular values from the eigenvalues of w's Gram; recomputed in higher precision where these are rounded."""
    if is_rounded(eigenvalues):
        if eigenvalues.dtype == np.float32:
            return _finished(w, _eigenvalues({"": gram(w, torch.float64)})[""])
        return torch.linalg.svdvals(w.double()).flip(0).cpu().numpy()
    return np.sqrt(np.maximum(eigenvalues.astype(np.float64), 0))


def is_rounded(eigenvalues: np.ndarray) -> bool:
    """True where rounding of the eigenvalues [n] may change ln(effective rank) by more than `TOLERANCE`.

    An error δ of an eigenvalue changes its root σ by up to √δ where it is below δ, and by δ/2σ of either sign above;
    and ln(effective rank) by that share of Σσ times the logarithm of √δ's.
    """
    largest = float(eigenvalues[-1])
    if largest <= 0:
        return False  # the zero matrix
    error = ROUNDING * float(np.finfo(eigenvalues.dtype).eps) * largest
    sigma = np.sqrt(np.maximum(eigenvalues.astype(np.float64), 0))
    above = sigma[eigenvalues > error]
    change = (len(sigma) - len(above)) * math.sqrt(error) + float(np.linalg.norm(error / (2 * above)))
    return -change / sigma.sum() * math.log(math.sqrt(error) / sigma.sum()) > TOLERANCE


def gaussian_singular_values(m: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Singular values [min(m, n)], ascending, of a random m×n matrix of standard normal entries.

    Drawn from their exact law: the Gram of such a matrix has the eigenvalues of a tridiagonal matrix of χ variables
    (Dumitriu & Edelman 2002, "Matrix models for beta ensembles").
    """
    import scipy.linalg  # here: it takes a quarter of a second, and only layers of different shapes need it

    short, long = min(m, n), max(m, n)
    diagonal = rng.chisquare(np.arange(long, long - short, -1))
    below = rng.chisquare(np.arange(short - 1, 0, -1)) if short > 1 else np.empty(0)
    tridiagonal = diagonal.copy()
    tridiagonal[1:] += below
    off = np.sqrt(diagonal[:-1] * below)
    return np.sqrt(np.maximum(scipy.linalg.eigvalsh_tridiagonal(tridiagonal, off, lapack_driver="sterf"), 0))


def perplexity(masses: np.ndarray) -> float | None:
    """exp of the Shannon entropy of non-negative masses, once normalised; 1…len. None where all are zero."""
    total = masses.sum()
    if total == 0:
        return None
    p = masses[masses > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))
