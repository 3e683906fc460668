"""Stated error rates and coverage hold where the truth is known: a few hundred draws against binomial bounds.

The long version, which prints the rates, is tests/benchmarks/bench_statistics.py.
"""

from __future__ import annotations

import pytest
import scipy.stats

from tests.benchmarks.bench_statistics import LAWS, SERIES, called, conserved, equivalent, family, met, missed, shifted

ALPHA = 0.05
SURE = 1e-3  # chance with which a rate that holds would fail a test


def at_most(rate: float, repeats: int) -> float:
    """The largest share that so many draws of events with this rate may show."""
    return float(scipy.stats.binom.ppf(1.0 - SURE, repeats, rate)) / repeats


def at_least(rate: float, repeats: int) -> float:
    return float(scipy.stats.binom.ppf(SURE, repeats, rate)) / repeats


@pytest.mark.parametrize("level", [0.90, 0.95])
@pytest.mark.parametrize("n", [2, 5, 6, 10])
def test_intervals_cover_normal_differences(n: int, level: float) -> None:
    for misses in missed(LAWS["normal"], n, level, 400):
        assert misses <= at_most((1.0 - level) / 2.0, 400)


@pytest.mark.parametrize(("law", "coverage"), [("t, 3 df", 0.95), ("exponential", 0.91), ("lognormal", 0.86)])
def test_intervals_cover_other_differences_as_their_docstring_says(law: str, coverage: float) -> None:
    for n in (6, 12):
        assert 1.0 - sum(missed(LAWS[law], n, 0.95, 250)) >= at_least(coverage, 250)


@pytest.mark.parametrize("law", ["normal", "t, 3 df"])
def test_no_difference_is_called_better_or_worse(law: str) -> None:
    assert called(LAWS[law], 6, 200) <= at_most(ALPHA, 200)


def test_of_many_outcomes_hardly_any_is_called_by_chance() -> None:
    for rate in family(10, 0.5, 80):
        assert rate <= at_most(ALPHA, 80)


@pytest.mark.parametrize(("n", "spread"), [(3, 0.3), (8, 0.8)])  # any smaller, and it is called worse instead
def test_a_difference_of_the_margin_is_not_equivalent(n: int, spread: float) -> None:
    assert 0.0 < equivalent(LAWS["normal"], n, spread, 200) <= at_most(ALPHA, 200)


@pytest.mark.parametrize("ratio", [0.80, 1.25])
@pytest.mark.parametrize("n", [3, 8])
def test_a_budget_at_the_bound_is_not_conserved(n: int, ratio: float) -> None:
    assert 0.0 < conserved(LAWS["normal"], n, ratio, 0.05, 200, "conserved") <= at_most(ALPHA, 200)
    assert conserved(LAWS["normal"], n, 1.0, 0.3, 100, "not conserved") <= at_most(ALPHA, 100)


@pytest.mark.parametrize(("n", "layers"), [(6, 11), (8, 1)])
def test_roles_of_arms_that_are_alike_do_not_differ(n: int, layers: int) -> None:
    for rate in shifted(n, layers, 200):
        assert rate <= at_most(ALPHA, 200)


@pytest.mark.parametrize("name", [name for name in SERIES if "linked" not in SERIES[name]])
def test_series_that_are_denser_early_do_not_coincide(name: str) -> None:
    assert met(20, 4, 100, **SERIES[name]) <= at_most(ALPHA, 100)


def test_transitions_at_drops_are_found() -> None:
    assert met(50, 4, 20, **SERIES["4 layers at a drop"]) >= 0.8
