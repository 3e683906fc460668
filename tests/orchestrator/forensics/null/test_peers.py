"""Qn against its words and its theory, and the table of limits against a simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from orchestrator.forensics.null.peers import CONSISTENT, FEWEST, LIMITS, limit, spread


@pytest.mark.parametrize("n", [4, 5, 11, 12, 30])
def test_it_is_the_kth_smallest_difference(n: int) -> None:
    values = np.random.default_rng(n).standard_t(2, n)
    half = n // 2 + 1
    smallest = sorted(abs(a - b) for a, b in combinations(values, 2))
    assert spread(values) == pytest.approx(CONSISTENT * smallest[half * (half - 1) // 2 - 1])


def test_of_many_gaussian_values_it_is_the_standard_deviation_at_four_fifths_of_its_efficiency() -> None:
    """82 % (Rousseeuw & Croux 1993)."""
    rng = np.random.default_rng(0)
    found = np.array([spread(rng.normal(7, 3, 300)) for _ in range(400)])
    assert found.mean() == pytest.approx(3, rel=0.02)
    efficiency = 1 / (2 * 300 * (found.std() / found.mean()) ** 2)
    assert efficiency == pytest.approx(0.82, abs=0.12)


@pytest.mark.parametrize("n", [5, 12, 31])
def test_outliers_under_half_of_the_values_do_not_raise_it_beyond_the_others_range(n: int) -> None:
    values = np.random.default_rng(0).normal(size=n)
    kept = n // 2 + 1
    values[kept:] = 10.0 ** np.arange(6, 6 + n - kept)
    assert spread(values) <= CONSISTENT * np.ptp(values[:kept])


def test_it_has_the_scale_of_the_values_and_not_their_place() -> None:
    values = np.random.default_rng(0).normal(size=9)
    assert spread(5 - 2 * values) == pytest.approx(2 * spread(values))
    assert spread(np.full(9, 3.0)) == 0


def _beyond(n: int, samples: int) -> float:
    """Share of Gaussian layers that lie beyond the limit."""
    rng, half = np.random.default_rng(n), n // 2 + 1
    first, second = np.triu_indices(n, 1)
    at, beyond = half * (half - 1) // 2 - 1, 0
    for _ in range(samples // 2000):
        values = rng.normal(size=(2000, n))
        scale = CONSISTENT * np.partition(np.abs(values[:, first] - values[:, second]), at, axis=1)[:, at]
        far = np.abs(values - np.median(values, axis=1, keepdims=True)) > limit(n) * scale[:, None]
        beyond += int(far.sum())
    return beyond / (samples * n)


@pytest.mark.parametrize("n", [4, 5, 6, 7, 11, 12, 24, 32])
def test_one_gaussian_layer_in_a_thousand_lies_beyond_the_limit(n: int) -> None:
    rate = _beyond(n, 100_000 if n < 12 else 20_000)
    assert rate == pytest.approx(0.001, rel=0.2)


@pytest.mark.parametrize("n", [33, 64])
def test_beyond_the_table_it_is_one_at_most(n: int) -> None:
    """Fewer of an even number of layers lie beyond."""
    assert 0.0003 < _beyond(n, 20_000) < 0.0012


def test_few_layers_have_no_limit_and_the_table_has_one_for_each_number() -> None:
    assert [limit(n) for n in range(FEWEST)] == [np.inf] * FEWEST
    assert limit(FEWEST) == LIMITS[0]
    assert limit(FEWEST + len(LIMITS) - 1) == LIMITS[-1]
    assert limit(200) == limit(FEWEST + len(LIMITS))
