"""Fingerprints of attention heads: the directions that they read and write, and their similarity (SCIENCE §1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.measures.extremes import expected_largest

TINY = torch.finfo(torch.float32).tiny  # a smaller norm is 0
SQUARINGS = 14  # of a head's matrix: 2^14 power steps isolate its leading direction


def fingerprints(v: Tensor, o: Tensor, heads: Heads) -> np.ndarray:
    """Per head, the leading left and right singular vectors of o_h v_h side by side: [heads, 2·d], of length √2.

    v [kv_heads·head_dim, d], o [d, heads·head_dim]. Their product [d, d] is never formed: with G = o_hᵀo_h and
    K = v_h v_hᵀ, its leading left vector is o_h z, where z leads K·G. A head that writes or reads nothing has
    the fingerprint 0.
    """
    out = o.T.reshape(heads.heads, heads.head_dim, -1)  # [heads, head_dim, d], rows are o_h's columns
    into = v.reshape(heads.kv_heads, heads.head_dim, -1)
    if heads.kv_heads < heads.heads:
        into = into.repeat_interleave(heads.heads // heads.kv_heads, dim=0)
    z, y = leading_pair((out @ out.mT).double(), (into @ into.mT).double())
    left = torch.einsum("hk,hkd->hd", z.float(), out)
    right = torch.einsum("hk,hkd->hd", y.float(), into)
    both = [torch.nn.functional.normalize(x, dim=1, eps=TINY) for x in (left, right)]
    return torch.cat(both, dim=1).cpu().numpy()


def leading_pair(g: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """z and y [heads, n], such that o z and vᵀy are the leading left and right singular vectors of o v, up to scale.

    G = oᵀo and K = vvᵀ suffice: σ²z = K·G·z, so z is the leading eigenvector of K·G, found by repeated squaring,
    and vᵀoᵀ(o z) = vᵀ(G z), so y is along G z.
    """
    power = k @ g
    for _ in range(SQUARINGS):
        scale = power.flatten(1).norm(dim=1).clamp_min(1e-300)
        power = power / scale[:, None, None]
        power = power @ power
    column = power.norm(dim=1).argmax(dim=1)  # every column is a multiple of z; the largest is the most accurate
    z = power.gather(2, column[:, None, None].expand(-1, power.shape[1], 1)).squeeze(2)
    z = torch.nn.functional.normalize(z, dim=1)
    y = (g @ z[:, :, None]).squeeze(2)
    return z, y / y.norm(dim=1, keepdim=True).clamp_min(1e-300)


def drawn_fingerprints(heads: Heads, width: int, rng: np.random.Generator) -> np.ndarray:
    """Fingerprints [heads, 2·width] of a layer of independent normal entries, from their exact law.

    Left vectors are independent and uniform. Right vectors of query heads that share a value head lie in its row
    space and tend to its strong directions: their mutual angles follow a small Wishart model, and the orientation of
    the group is uniform.
    """
    left = rng.normal(size=(heads.heads, width))
    group = heads.heads // heads.kv_heads
    right = rng.normal(size=(heads.heads, width)) if group == 1 else _grouped(heads, group, width, rng)
    both = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right)]
    return np.concatenate(both, axis=1).astype(np.float32)


def _grouped(heads: Heads, group: int, width: int, rng: np.random.Generator) -> np.ndarray:
    g = torch.from_numpy(_wishart(heads.heads, heads.head_dim, width, rng))
    k = torch.from_numpy(_wishart(heads.kv_heads, heads.head_dim, width, rng))
    _, y = leading_pair(g, k.repeat_interleave(group, dim=0))
    y = y.reshape(heads.kv_heads, group, heads.head_dim)
    angles = (y @ k @ y.mT).numpy()  # [kv_heads, group, group], inner products of the right vectors
    eigenvalues, vectors = np.linalg.eigh(angles)
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0))[:, None, :]  # angles = root·rootᵀ
    count = min(group, width)
    frame, _ = np.linalg.qr(rng.normal(size=(heads.kv_heads, width, count)))  # orthonormal, of uniform orientation
    return np.asarray(root[:, :, -count:] @ frame.transpose(0, 2, 1)).reshape(heads.heads, width)


def _wishart(count: int, size: int, freedom: int, rng: np.random.Generator) -> np.ndarray:
    """Grams [count, size, size] of `size` normal vectors in `freedom` dimensions (Bartlett's decomposition)."""
    if freedom < size:
        x = rng.normal(size=(count, size, freedom))
        return np.asarray(x @ x.transpose(0, 2, 1))
    lower = np.tril(rng.normal(size=(count, size, size)), -1)
    diagonal = np.sqrt(rng.chisquare(np.arange(freedom, freedom - size, -1), size=(count, size)))
    lower[:, np.arange(size), np.arange(size)] = diagonal
    return np.asarray(lower @ lower.transpose(0, 2, 1))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|cos| between the fingerprints a [h, 2·d] and b [h', 2·d'], on the coordinates both have: [h, h'].

    NaN where a fingerprint is 0 there.
    """
    d = min(a.shape[1], b.shape[1]) // 2
    a, b = (np.concatenate([x[:, :d], x[:, x.shape[1] // 2 :][:, :d]], axis=1) for x in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.abs(a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1))


def diversity(prints: np.ndarray) -> float | None:
    """1 − mean |cos| over pairs of different heads; None with fewer than two heads that are not zero."""
    known = cosines(prints, prints)[~np.eye(len(prints), dtype=bool)]
    known = known[np.isfinite(known)]
    return 1 - float(known.mean()) if len(known) else None


def matches_of(prints: Sequence[np.ndarray | None]) -> np.ndarray:
    """max |cos| between a head of one layer and a head of another: [L, L], NaN on the diagonal and where not known."""
    matches = np.full((len(prints), len(prints)), np.nan)
    for i, a in enumerate(prints):
        for j, b in enumerate(prints[:i]):
            if a is not None and b is not None:
                known = cosines(a, b)
                known = known[np.isfinite(known)]
                matches[i, j] = matches[j, i] = known.max() if len(known) else np.nan
    return matches


def expected_match(first: int, second: int, width: int) -> float:
    """The best match by chance of two layers with these numbers of heads, on `width` coordinates.

    The cosine of two fingerprints is nearly Gaussian, of variance 1/(2·width).
    """
    return expected_largest(first * second) / math.sqrt(2 * width)


def couplings(matches: np.ndarray) -> np.ndarray:
    """Per layer, the mean of its matches [L, L] with the other layers: [L], NaN where there are none."""
    counts = np.isfinite(matches).sum(axis=1)
    return np.divide(np.nansum(matches, axis=1), counts, out=np.full(len(matches), np.nan), where=counts > 0)
