"""Thresholds against their theory: Cantelli's bound, the Gaussian tail, and what masks what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from orchestrator.forensics import saturation
from orchestrator.forensics.saturation import co_magnitude, literal_threshold, resampled, robust_threshold


@given(arrays(np.float64, st.integers(1, 200), elements=st.just(0.0) | st.floats(1e-90, 1e6)))  # fp32 weights reach
def test_literal_count_never_passes_a_tenth(c: np.ndarray) -> None:
    assert (c > literal_threshold(c)).sum() <= len(c) / 10


def test_gaussian_layer_of_the_papers_size_has_4_7_by_chance() -> None:
    c = np.random.default_rng(0).normal(10, 1, size=(400, 3504))
    counts = [(row > literal_threshold(row)).sum() for row in c]
    assert np.mean(counts) == pytest.approx(3504 * stats.norm.sf(3), abs=0.3)  # 4.73


def test_resampled_layer_has_the_chance_count() -> None:
    """Rows of a Gaussian layer have chi-distributed norms, so their products give the count to expect."""
    f, d = 3504, 32
    rng = np.random.default_rng(0)
    product = stats.chi(d).rvs((2, 200_000), random_state=rng).prod(axis=0)
    expected = f * (product > product.mean() + 3 * product.std()).mean()
    gate, up = rng.normal(size=(2, f, d))
    counts = [(c > literal_threshold(c)).sum() for c in resampled(gate, up, 20, (0, 0))]
    assert np.mean(counts) == pytest.approx(expected, abs=4 * np.sqrt(expected / 20))


def test_resampling_breaks_up_planted_rows_and_is_reproducible() -> None:
    rng = np.random.default_rng(0)
    gate, up = rng.normal(size=(2, 400, 64))
    gate[:10] *= 5
    assert (co_magnitude(gate, up) > literal_threshold(co_magnitude(gate, up))).sum() == 10
    first, second = (list(resampled(gate, up, 3, (1, 2))) for _ in range(2))
    assert np.mean([(c > literal_threshold(c)).sum() for c in first]) < 8
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], next(resampled(gate, up, 1, (1, 3))))


def test_many_saturated_positions_hide_from_the_literal_threshold_only() -> None:
    rng = np.random.default_rng(0)
    gate, up = rng.normal(size=(2, 400, 64))
    gate[:120] *= 10
    c = co_magnitude(gate, up)
    assert (c > literal_threshold(c)).sum() == 0
    assert (c[:120] > robust_threshold(c)).all()


def test_blocks_of_rows_do_not_repeat_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saturation, "BLOCK", 30_000)
    w = np.random.default_rng(0).normal(size=(5, 10_000))
    (rows,) = resampled(w, np.ones((5, 1)), 1, (0,))
    assert len(np.unique(rows)) == 5
    np.testing.assert_allclose(rows, np.sqrt((w**2).mean() * 10_000), rtol=0.05)
