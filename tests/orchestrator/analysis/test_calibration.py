"""Stated error rates and coverage hold where the truth is known: enumerated, or drawn against binomial bounds.

Where draws are few because each is slow, the bounds are wide and only gross errors are found: 5 % may be 9 % of 250
draws and 13.75 % of 80. The long version, which prints the rates, is tests/benchmarks/bench_statistics.py.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.migration import RoleShift, role_shift
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.sign_flip import p_two_sided
from orchestrator.forensics.roles.routing import STATES
from tests.benchmarks import bench_sequential
from tests.benchmarks.bench_statistics import (
    LAWS,
    SERIES,
    WITHIN,
    called,
    conserved,
    equivalent,
    family,
    met,
    missed,
    shifted,
)
from tests.orchestrator.reading import reading_of

pytestmark = pytest.mark.statistical

ALPHA = 0.05  # of a verdict: the product spends 0.032 where differences are symmetric
SURE = 1e-3  # chance with which a rate that holds would fail a test


def at_most(rate: float, repeats: int) -> float:
    """The largest share that so many draws of events with this rate may show."""
    return float(scipy.stats.binom.ppf(1.0 - SURE, repeats, rate)) / repeats


def at_least(rate: float, repeats: int) -> float:
    return float(scipy.stats.binom.ppf(SURE, repeats, rate)) / repeats


@pytest.mark.parametrize("level", [0.90, 0.95])
@pytest.mark.parametrize("n", [2, 5, 6, 10])
def test_intervals_cover_normal_differences(n: int, level: float) -> None:
    repeats = 2000 if n < 6 else 600  # from six on each takes a bootstrap
    for misses in missed(LAWS["normal"], n, level, repeats):
        assert misses <= at_most((1.0 - level) / 2.0, repeats)


@pytest.mark.parametrize(("law", "coverage"), [("t, 3 df", 0.95), ("exponential", 0.91), ("lognormal", 0.86)])
def test_intervals_cover_other_differences_as_their_docstring_says(law: str, coverage: float) -> None:
    for n in (6, 12):
        assert 1.0 - sum(missed(LAWS[law], n, 0.95, 250)) >= at_least(coverage, 250)


@pytest.mark.parametrize("n", [2, 5, 6, 7, 8])
def test_the_sign_flip_test_has_its_level_exactly(n: int) -> None:
    size = np.random.default_rng(n).lognormal(size=n)  # whatever the differences are: without an effect signs are coins
    p = np.array([p_two_sided(size * signs) for signs in product((1.0, -1.0), repeat=n)])
    for level in np.unique(p):
        assert (p <= level).mean() == pytest.approx(level)


def test_the_role_shift_has_its_level_exactly() -> None:
    rng, n, layers = np.random.default_rng(1), 6, 5
    roles = rng.choice(STATES, (n, 2, layers))  # without an effect each pair's arms may as well be exchanged
    overall, smallest = [], []
    for flips in product((False, True), repeat=n):
        sides = [held[::-1] if flip else held for held, flip in zip(roles, flips, strict=True)]
        shift = role_shift("b", [Pair(_cell(a), _cell(b), ()) for a, b in sides])
        assert isinstance(shift, RoleShift)
        overall.append(shift.p)
        smallest.append(min(layer.p for layer in shift.layers if layer.p is not None))
    assert len(set(overall)) > 5
    for p in np.array([overall, smallest]):
        for level in (0.05, *np.unique(p)):
            assert (p <= level).mean() <= level + 1e-12


def _cell(roles: np.ndarray) -> CellResult:
    named = ["damper/hub" if role == "tie" else str(role) for role in roles]
    return CellResult("b", 0, Path(), [], {0: reading_of(named)}, None)


@pytest.mark.parametrize("law", ["normal", "t, 3 df"])
def test_no_difference_is_called_better_or_worse(law: str) -> None:
    assert called(LAWS[law], 6, 200) <= at_most(ALPHA, 200)


@pytest.mark.parametrize("law", ["normal", "t, 3 df", "gamma, skewness 1"])
def test_looking_until_it_is_decided_calls_no_more(law: str) -> None:
    found, _ = bench_sequential.simulate(bench_sequential.LAWS[law], 0.0, 1e-9, 400)
    assert found["better"] + found["worse"] <= at_most(ALPHA, 400)
    assert bench_sequential.simulate(bench_sequential.LAWS[law], 1.0, 1.0, 400)[0]["equivalent"] <= at_most(ALPHA, 400)


def test_of_many_outcomes_hardly_any_is_called_by_chance() -> None:
    """Gross errors only: a draw of ten outcomes takes ten bootstraps."""
    for rate in family(10, 0.5, 80):
        assert rate <= at_most(ALPHA, 80)


@pytest.mark.parametrize(("n", "spread"), [(8, 0.8)])  # any smaller, and it is called worse instead
def test_a_difference_of_the_margin_is_not_equivalent(n: int, spread: float) -> None:
    repeats = 300
    assert 0.0 < equivalent(LAWS["normal"], n, spread, repeats) <= at_most(ALPHA, repeats)


@pytest.mark.parametrize("ratio", [0.80, 1.25])
@pytest.mark.parametrize("n", [8])
def test_a_budget_at_the_bound_is_not_conserved(n: int, ratio: float) -> None:
    repeats = 400
    assert 0.0 < conserved(LAWS["normal"], n, ratio, 0.05, repeats, *WITHIN) <= at_most(ALPHA, repeats)
    assert conserved(LAWS["normal"], n, 1.0, 0.3, repeats, "not conserved") <= at_most(ALPHA, repeats)


@pytest.mark.parametrize(("n", "layers"), [(6, 11), (8, 1)])
def test_roles_of_arms_that_are_alike_do_not_differ(n: int, layers: int) -> None:
    for rate in shifted(n, layers, 200):
        assert rate <= at_most(ALPHA, 200)


@pytest.mark.parametrize("name", [name for name in SERIES if "linked" not in SERIES[name]])
def test_series_that_are_denser_early_do_not_coincide(name: str) -> None:
    """Gross errors only: a draw takes four cells' runs."""
    assert met(20, 4, 100, **SERIES[name]) <= at_most(ALPHA, 100)


def test_transitions_at_drops_are_found() -> None:
    assert met(50, 4, 20, **SERIES["4 layers at a drop"]) >= 0.8
