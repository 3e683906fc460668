"""Drawn sums against really resampling the entries with replacement."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from orchestrator.forensics.measures import resampling
from orchestrator.forensics.measures.resampling import entries_of, resampled_sums

DRAWS = 3000


def _outlier(rng: np.random.Generator) -> np.ndarray:
    w = rng.normal(size=(60, 50))
    w[3, 7] = 40.0
    return w


ENTRIES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "gaussian": lambda rng: rng.normal(size=(60, 50)),
    "uniform": lambda rng: rng.uniform(-1, 1, size=(60, 50)),
    "t(3)": lambda rng: rng.standard_t(3, size=(60, 50)),
    "one huge entry": _outlier,
    "sparse": lambda rng: rng.normal(size=(60, 50)) * (rng.random((60, 50)) < 0.1),
    "rows of unequal scale": lambda rng: rng.normal(size=(60, 50)) * np.geomspace(0.1, 10, 60)[:, None],
}


@pytest.mark.parametrize("name", list(ENTRIES))
@pytest.mark.parametrize("size", [40, 400])
def test_sums_have_the_law_of_resampled_ones(name: str, size: int) -> None:
    rng = np.random.default_rng(0)
    w = ENTRIES[name](rng).astype(np.float32)
    squares = np.square(w.astype(np.float64)).ravel()
    drawn = resampled_sums(entries_of(torch.from_numpy(w)), DRAWS, size, rng)
    real = rng.choice(squares, (DRAWS, size)).sum(axis=1)
    assert stats.ks_2samp(drawn, real).pvalue > 1e-3
    error = squares.std() * np.sqrt(size / DRAWS)
    assert drawn.mean() == pytest.approx(squares.mean() * size, abs=4 * error)
    assert drawn.std() == pytest.approx(real.std(), rel=0.15)


@pytest.mark.parametrize("name", ["gaussian", "t(3)"])
def test_weighted_sums(name: str) -> None:
    rng = np.random.default_rng(1)
    w = ENTRIES[name](rng).astype(np.float32)
    weights = rng.chisquare(5, size=64)
    drawn = resampled_sums(entries_of(torch.from_numpy(w)), DRAWS, weights, rng)
    real = np.square(rng.choice(w.ravel(), (DRAWS, 64))) @ weights
    assert stats.ks_2samp(drawn, real).pvalue > 1e-3


@pytest.mark.parametrize("name", ["gaussian", "uniform", "sparse"])
@pytest.mark.parametrize("size", [4, 40])
def test_cumulants_of_sums_are_those_of_the_entries(name: str, size: int) -> None:
    """Mean, variance and skewness, from few entries on (of one or two uniform ones the mean comes out 4 % too high)."""
    rng = np.random.default_rng(3)
    w = ENTRIES[name](rng).astype(np.float32)
    squares = np.square(w.astype(np.float64)).ravel()
    for weights in (np.ones(size), np.linspace(0.5, 2, size)):
        drawn = resampled_sums(entries_of(torch.from_numpy(w)), 40_000, weights, rng)
        std = squares.std() * np.sqrt((weights**2).sum())
        skewness = stats.skew(squares) * (weights**3).sum() / (weights**2).sum() ** 1.5
        assert drawn.mean() == pytest.approx(squares.mean() * weights.sum(), abs=0.04 * std)
        assert drawn.std() == pytest.approx(std, rel=0.05)
        assert stats.skew(drawn) == pytest.approx(skewness, rel=0.15, abs=0.1)


def test_weights_of_zero_leave_nothing() -> None:
    entries = entries_of(torch.randn(30, 30, generator=torch.Generator().manual_seed(0)))
    assert (resampled_sums(entries, 20, np.zeros(9), np.random.default_rng(0)) == 0).all()


def test_the_largest_of_many_sums_is_as_large_as_it_should_be() -> None:
    """The tail of a heavy-tailed layer's column sums, which decides about outliers."""
    rng = np.random.default_rng(2)
    w = rng.standard_t(4, size=(512, 64)).astype(np.float32)
    entries = entries_of(torch.from_numpy(w))
    drawn = [resampled_sums(entries, 512, 64, rng).max() for _ in range(300)]
    real = [np.square(rng.choice(w.ravel(), w.shape)).sum(axis=1).max() for _ in range(300)]
    assert stats.ks_2samp(drawn, real).pvalue > 1e-3


def test_small_groups_are_never_negative() -> None:
    entries = entries_of(torch.randn(30, 30, generator=torch.Generator().manual_seed(0)))
    for size in (1, 2, 3):
        sums = resampled_sums(entries, 2000, size, np.random.default_rng(0))
        assert (sums >= 0).all()
        assert sums.mean() == pytest.approx(size * entries.mean, rel=0.1)


def test_entries_without_spread() -> None:
    rng = np.random.default_rng(0)
    assert (resampled_sums(entries_of(torch.zeros(5, 7)), 4, 9, rng) == 0).all()
    for value in (-2.0, 0.1, 1 / 3):  # the mean of equal squares is not quite one of them
        entries = entries_of(torch.full((37, 16), value))
        assert resampled_sums(entries, 50, 9, rng) == pytest.approx(9 * value**2, rel=1e-5)


def test_a_tail_too_large_to_keep_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.random.default_rng(0).standard_t(3, size=(200, 200)).astype(np.float32)
    whole = entries_of(torch.from_numpy(w))
    monkeypatch.setattr(resampling, "KEPT", 200)
    monkeypatch.setattr(resampling, "BLOCK", 1000)  # and many blocks of rows
    kept = entries_of(torch.from_numpy(w))
    assert len(whole.tail) > 200 == len(kept.tail)
    assert (kept.tail_share, kept.count) == (whole.tail_share, whole.count)
    assert kept.mean == pytest.approx(whole.mean, rel=1e-6)
    assert kept.bulk == pytest.approx(whole.bulk, rel=1e-4)
