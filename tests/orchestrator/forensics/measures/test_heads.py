"""Head fingerprints against singular value decompositions of o_h v_h, and their null against real noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.measures.heads import (
    cosines,
    couplings,
    diversity,
    drawn_fingerprints,
    fingerprints,
    matches_of,
)

WIDTH = 40
LAYOUTS = {"one per head": Heads(6, 6, 5), "grouped": Heads(6, 2, 5), "one for all": Heads(4, 1, 8)}


def _weights(heads: Heads, seed: int, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(heads.kv_heads * heads.head_dim, width, generator=g)
    return v, torch.randn(width, heads.heads * heads.head_dim, generator=g)


def _decomposed(v: torch.Tensor, o: torch.Tensor, heads: Heads) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per head, σ, U and Vᵀ of o_h v_h in float64."""
    group, n = heads.heads // heads.kv_heads, heads.head_dim
    products = []
    for h in range(heads.heads):
        o_h, v_h = o[:, h * n : (h + 1) * n], v[h // group * n : (h // group + 1) * n]
        products.append((o_h.double() @ v_h.double()).numpy())
    u, s, vt = np.linalg.svd(np.stack(products))
    return s, u, vt


@pytest.mark.parametrize("name", list(LAYOUTS))
@pytest.mark.parametrize("seed", range(3))
def test_fingerprints_are_the_leading_singular_vectors(name: str, seed: int) -> None:
    heads = LAYOUTS[name]
    v, o = _weights(heads, seed)
    got = fingerprints(v, o, heads).astype(np.float64)
    _, u, vt = _decomposed(v, o, heads)
    assert got.shape == (heads.heads, 2 * WIDTH)
    expected = np.concatenate([u[:, :, 0], vt[:, 0]], axis=1)
    along = np.einsum("hi,hi->h", got, expected)
    np.testing.assert_allclose(np.abs(along), 2, rtol=1e-4)  # both halves, and with one sign


def test_a_head_without_a_leading_direction_stays_in_the_leading_plane() -> None:
    heads = Heads(1, 1, 4)
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, 4)))
    o, v = torch.from_numpy(q * [2, 2, 1, 0.5]).float(), torch.from_numpy(q.T.copy()).float()
    left = fingerprints(v, o, heads)[0, :WIDTH].astype(np.float64)
    assert np.linalg.norm(q[:, :2].T @ left) == pytest.approx(1, abs=1e-4)


def test_heads_that_do_nothing_have_no_direction_and_no_cosine() -> None:
    heads = LAYOUTS["one per head"]
    v, o = _weights(heads, 0)
    o[:, :5] = 0
    prints = fingerprints(v, o, heads)
    assert (prints[0, :WIDTH] == 0).all()
    assert np.isfinite(prints).all()
    found = cosines(prints, prints)
    assert np.isfinite(found[1:, 1:]).all()
    assert diversity(prints) is not None
    assert diversity(np.zeros_like(prints)) is None
    assert diversity(prints[:1]) is None


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_drawn_fingerprints_have_the_law_of_real_noise(name: str) -> None:
    heads, rng = LAYOUTS[name], np.random.default_rng(0)
    real = [diversity(fingerprints(*_weights(heads, seed), heads)) for seed in range(300)]
    drawn = [diversity(drawn_fingerprints(heads, WIDTH, rng)) for _ in range(300)]
    assert stats.ks_2samp(real, drawn).pvalue > 1e-3


@pytest.mark.parametrize("heads", [Heads(6, 2, 5), Heads(8, 1, 12), Heads(6, 2, 8), Heads(4, 4, 16), Heads(4, 2, 1)])
def test_drawn_fingerprints_of_a_narrow_layer(heads: Heads) -> None:
    """With heads wider than the layer, or more of them in a group than it has coordinates."""
    rng, width = np.random.default_rng(0), 6
    real = [fingerprints(*_weights(heads, seed, width), heads) for seed in range(400)]
    drawn = [drawn_fingerprints(heads, width, rng) for _ in range(400)]
    assert stats.ks_2samp([diversity(x) for x in real], [diversity(x) for x in drawn]).pvalue > 1e-3
    matches = [[matches_of(prints[i : i + 2])[0, 1] for i in range(0, 400, 2)] for prints in (real, drawn)]
    assert stats.ks_2samp(*matches).pvalue > 1e-3


def test_cosines_and_couplings_by_loops() -> None:
    rng = np.random.default_rng(0)
    prints = [rng.normal(size=(heads, 2 * width)) for heads, width in ((3, 8), (2, 6), (4, 8))]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        d = min(len(a), len(b)) // 2
        a, b = (np.concatenate([x[: len(x) // 2][:d], x[len(x) // 2 :][:d]]) for x in (a, b))
        return abs(float(a @ b)) / np.linalg.norm(a) / np.linalg.norm(b)

    np.testing.assert_allclose(cosines(prints[0], prints[1]), [[cosine(a, b) for b in prints[1]] for a in prints[0]])
    best = {(i, j): max(cosine(a, b) for a in prints[i] for b in prints[j]) for i in range(3) for j in range(3)}
    expected = [np.mean([best[i, j] for j in range(3) if j != i]) for i in range(3)]
    np.testing.assert_allclose(couplings(matches_of(prints)), expected)
    expected_diversity = 1 - np.mean([cosine(a, b) for i, a in enumerate(prints[2]) for b in prints[2][i + 1 :]])
    assert diversity(prints[2]) == pytest.approx(expected_diversity)
    assert np.isnan(couplings(matches_of(prints[:1]))).all()
    assert np.isnan(couplings(matches_of([prints[0], None]))).all()
