"""Spectra against numpy's SVD in float64, where the fast path is easy and where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.forensics.spectrum import perplexity, singular_values


def _low_rank(rng: np.random.Generator, m: int, n: int, rank: int) -> np.ndarray:
    return rng.normal(size=(m, rank)) @ rng.normal(size=(rank, n))


def _graded(rng: np.random.Generator, n: int, smallest: float) -> np.ndarray:
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    return left * np.geomspace(1, smallest, n) @ right


def _matrices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    fp32 = _low_rank(rng, 64, 192, 3).astype(np.float32).astype(np.float64)
    return {
        "wide": rng.normal(size=(24, 96)),
        "tall": rng.normal(size=(96, 24)),
        "square": rng.normal(size=(64, 64)),
        "rank one": _low_rank(rng, 200, 200, 1),
        "rank three in fp32": fp32,
        "half rank": _low_rank(rng, 60, 200, 30),
        "graded to 1e-4": _graded(rng, 80, 1e-4),
        "graded to 1e-12": _graded(rng, 80, 1e-12),
        "one row": rng.normal(size=(1, 7)),
        "zero": np.zeros((4, 6)),
    }


@pytest.mark.parametrize("name", list(_matrices()))
def test_singular_values(name: str) -> None:
    w = _matrices()[name]
    expected = np.linalg.svd(w, compute_uv=False)[::-1]
    got = singular_values(w)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * max(expected[-1], 1e-300))
    if name != "zero":
        p = expected[expected > 0] / expected.sum()
        assert perplexity(got) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_perplexity_at_its_ends() -> None:
    assert perplexity(np.array([0.0, 3.0, 0.0])) == 1
    assert perplexity(np.full(5, 0.1)) == pytest.approx(5)
    assert perplexity(np.zeros(3)) is None
