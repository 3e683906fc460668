"""Spectra against numpy's SVD in float64, where the fast path is easy and where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from orchestrator.forensics.measures import spectrum
from orchestrator.forensics.measures.spectrum import (
    TOLERANCE,
    gaussian_singular_values,
    gram,
    is_rounded,
    perplexity,
    spectra,
)


def _low_rank(rng: np.random.Generator, m: int, n: int, rank: int) -> np.ndarray:
    return rng.normal(size=(m, rank)) @ rng.normal(size=(rank, n))


def _graded(rng: np.random.Generator, n: int, smallest: float) -> np.ndarray:
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    return left * np.geomspace(1, smallest, n) @ right


def _powers(rng: np.random.Generator, n: int, exponent: float) -> np.ndarray:
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    return left * np.arange(1, n + 1) ** exponent @ right


def _matrices() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    matrices = {
        "wide": rng.normal(size=(24, 96)),
        "tall": rng.normal(size=(96, 24)),
        "square": rng.normal(size=(64, 64)),
        "large": rng.normal(size=(64, 32)) * 1e15,
        "small": rng.normal(size=(64, 32)) * 1e-12,
        "rank one": _low_rank(rng, 200, 200, 1),
        "rank three": _low_rank(rng, 64, 192, 3),
        "half rank": _low_rank(rng, 60, 200, 30),
        "graded to 1e-4": _graded(rng, 80, 1e-4),
        "graded to 1e-12": _graded(rng, 80, 1e-12),
        "power law": _powers(rng, 192, -2.0),
        "steep power law": _powers(rng, 192, -3.0),
        "low rank in noise": _low_rank(rng, 192, 192, 24) + 1e-2 * rng.normal(size=(192, 192)),
        "one loud direction": rng.normal(size=(192, 192)) + 100 * _low_rank(rng, 192, 192, 1),
        "loud columns": rng.normal(size=(96, 288)) * np.where(np.arange(288) < 2, 1e3, 1.0),
        "rows of all scales": rng.normal(size=(192, 192)) * np.exp(2 * rng.normal(size=(192, 1))),
        "almost constant": rng.normal(size=(192, 192)) * 0.1 + 1,
        "one row": rng.normal(size=(1, 7)),
        "one entry": rng.normal(size=(1, 1)),
        "zero": np.zeros((4, 6)),
    }
    tensors = {name: torch.from_numpy(w).float() for name, w in matrices.items()}
    return tensors | {"bf16": tensors["square"].bfloat16().float(), "transposed view": tensors["wide"].T}


@pytest.mark.parametrize("name", list(_matrices()))
def test_singular_values_and_their_entropy(name: str) -> None:
    w = _matrices()[name]
    expected = np.linalg.svd(w.double().numpy(), compute_uv=False)[::-1]
    got = spectra({"w": w}, {})["w"]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3 * max(expected[-1], 1e-300))
    assert got[-1] == pytest.approx(expected[-1], rel=1e-5)
    if name != "zero":
        p = expected[expected > 0] / expected.sum()
        assert perplexity(got) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_several_at_once_with_grams_at_hand_are_each_one_by_itself() -> None:
    matrices = _matrices()
    grams = {name: gram(matrices[name]) for name in ("tall", "square")}
    together = spectra(matrices, grams)
    for name, w in matrices.items():
        np.testing.assert_allclose(together[name], spectra({name: w}, {})[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["wide", "tall", "square", "one row", "transposed view"])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_gram_is_whole_and_symmetric(name: str, dtype: torch.dtype | None) -> None:
    w = _matrices()[name]
    got = gram(w, dtype)
    assert got.dtype == (dtype or torch.float32)
    assert torch.equal(got, got.T)
    tolerance = 1e-12 if dtype else 1e-5
    np.testing.assert_allclose(got.numpy(), w.double().numpy().T @ w.double().numpy(), rtol=tolerance, atol=tolerance)


def test_precision_is_raised_where_rounding_would_show_and_only_there() -> None:
    matrices = _matrices()
    rounded = {name for name, w in matrices.items() if is_rounded(_fp32_eigenvalues(w))}
    assert {"rank one", "rank three", "half rank", "graded to 1e-12"} <= rounded
    assert not {"wide", "tall", "transposed view", "large", "small", "zero", "one row"} & rounded


@pytest.mark.parametrize("drowned", [1, 10, 100, 400])
@pytest.mark.parametrize("loudness", [1.0, 30.0, 1000.0])
def test_what_passes_as_sound_costs_less_than_the_tolerance(drowned: int, loudness: float) -> None:
    """Whatever the values below the floor are, between 0 and the floor, the effective rank stays put."""
    eigenvalues = np.concatenate([np.zeros(drowned), np.ones(500), [loudness**2]]).astype(np.float32)
    floor = spectrum.ROUNDING * np.finfo(np.float32).eps * loudness**2
    lowest, highest = (perplexity(np.sqrt(np.maximum(eigenvalues.astype(float), low))) for low in (0, floor))
    assert lowest is not None
    assert highest is not None
    change = np.log(highest / lowest)
    assert change > TOLERANCE / 10 if is_rounded(eigenvalues) else change < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gram_in_blocks_keeps_the_precision_asked_for(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "ROWS", 7)
    w = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 12))).to(dtype)
    got = gram(w, torch.float64)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), w.double().numpy().T @ w.double().numpy(), rtol=1e-12, atol=1e-12)
    assert gram(w).dtype == torch.float32


def _fp32_eigenvalues(w: torch.Tensor) -> np.ndarray:
    values: np.ndarray = np.linalg.eigvalsh(gram(w if w.shape[0] >= w.shape[1] else w.T).numpy())
    return values


@pytest.mark.parametrize("shape", [(40, 40), (30, 90), (90, 30), (1, 5), (2, 2)])
def test_drawn_spectra_have_the_law_of_real_ones(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([gaussian_singular_values(*shape, rng) for _ in range(800)])  # [800, min]
    real = np.array([np.linalg.svd(rng.normal(size=shape), compute_uv=False)[::-1] for _ in range(800)])
    for a, b in zip(drawn.T[[0, -1]], real.T[[0, -1]], strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3
    ranks = [[perplexity(values) for values in spectrum] for spectrum in (drawn, real)]
    if min(shape) > 1:
        assert stats.ks_2samp(*ranks).pvalue > 1e-3
    else:
        assert ranks[0] == ranks[1]


def test_perplexity_at_its_ends() -> None:
    assert perplexity(np.array([0.0, 3.0, 0.0])) == 1
    assert perplexity(np.full(5, 0.1)) == pytest.approx(5)
    assert perplexity(np.zeros(3)) is None
