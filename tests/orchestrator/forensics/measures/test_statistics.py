"""Thresholds against their theory: Cantelli's bound, the Gaussian tail, and what masks what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from orchestrator.forensics.measures.statistics import literal_threshold, robust_threshold


@given(arrays(np.float64, st.integers(1, 200), elements=st.just(0.0) | st.floats(1e-90, 1e6)))  # fp32 weights reach
def test_literal_count_never_passes_a_tenth(c: np.ndarray) -> None:
    assert (c > literal_threshold(c)).sum() <= len(c) / 10


def test_gaussian_layer_of_the_papers_size_has_4_7_by_chance() -> None:
    c = np.random.default_rng(0).normal(10, 1, size=(400, 3504))
    counts = [(row > literal_threshold(row)).sum() for row in c]
    assert np.mean(counts) == pytest.approx(3504 * stats.norm.sf(3), abs=0.3)  # 4.73


def test_robust_threshold_of_a_gaussian_is_three_sigma() -> None:
    c = np.random.default_rng(0).normal(10, 2, size=1_000_000)
    assert robust_threshold(c) == pytest.approx(16, rel=1e-2)


def test_many_saturated_positions_hide_from_the_literal_threshold_only() -> None:
    c = np.random.default_rng(0).normal(10, 1, size=400)
    c[:120] *= 10
    assert (c > literal_threshold(c)).sum() == 0
    assert (c[:120] > robust_threshold(c)).all()
