"""The sign-flip test against enumeration and scipy: at one look, and over several that share one error."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.analysis.sign_flip import EXACT_PAIRS, Look, is_below, one_look, p_below, p_two_sided, sign_patterns
from orchestrator.experiments.decision import ALPHA, FEWEST_PAIRS, smallest_p


def enumerated_p(d: list[float]) -> float:
    means = np.array([np.mean(np.multiply(d, signs)) for signs in itertools.product((-1, 1), repeat=len(d))])
    return min(1.0, 2.0 * min(float(np.mean(sign * means <= sign * np.mean(d) + 1e-12)) for sign in (1, -1)))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=2, max_size=8))
def test_one_look_equals_enumeration(d: list[float]) -> None:
    p = p_two_sided(d)
    assert p == pytest.approx(enumerated_p(d))
    assert p is not None
    assert p >= smallest_p(len(d)) - 1e-12


def test_smallest_p_is_reached_and_is_too_large_under_six_pairs() -> None:
    for n in range(2, 9):
        assert p_two_sided(np.linspace(1.0, 1.3, n)) == pytest.approx(smallest_p(n))
    assert smallest_p(5) > ALPHA > smallest_p(6)
    assert FEWEST_PAIRS == 6
    assert p_two_sided([0.4]) is None


@pytest.mark.parametrize(("n", "mean"), [(EXACT_PAIRS + 1, 0.5), (30, 0.2)])
def test_sign_flips_drawn_at_random_agree_with_scipys(n: int, mean: float) -> None:
    d = np.random.default_rng(n).normal(mean, 1.0, n)
    theirs = scipy.stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1).pvalue
    p = p_two_sided(d)
    assert p is not None
    assert p == p_two_sided(d)  # the same patterns every time
    assert abs(p - theirs) < 6 * (2 * max(p, 1e-4) / 2**EXACT_PAIRS) ** 0.5  # either is an estimate
    assert p_two_sided(np.full(n, 0.3)) == pytest.approx(2 / 2**EXACT_PAIRS, abs=4e-4)  # but for patterns of equal sign
    assert p_two_sided(np.zeros(n)) == 1.0


def first_called(d: Sequence[float], looks: Sequence[Look], error: float) -> dict[tuple[float, ...], int]:
    """Sign pattern of |d| → the look at which it is called, written pattern by pattern from the definition."""
    size, found = np.abs(d), dict[tuple[float, ...], int]()
    patterns = list(itertools.product((1.0, -1.0), repeat=len(d)))
    for index, look in enumerate(looks):
        open_ones = [p for p in patterns if p not in found]
        sums = {p: round(float(np.dot(p[: look.pairs], size[: look.pairs])), 9) for p in open_ones}
        may = error * look.pairs / look.most * len(patterns) + 1e-9
        for value in sorted(set(sums.values())):  # all of equal sums, or none
            of_value = [p for p in open_ones if sums[p] == value]
            if len(found) + len(of_value) > may:
                break
            found |= dict.fromkeys(of_value, index)
    return found


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_several_looks_call_the_patterns_of_the_definition_and_spend_no_more_than_the_error(
    data: st.DataObject,
) -> None:
    n = data.draw(st.integers(3, 8))
    d = data.draw(st.lists(st.integers(-9, 9).filter(bool).map(float), min_size=n, max_size=n))
    pairs = sorted({*data.draw(st.lists(st.integers(2, n), min_size=1, max_size=3)), n})
    looks = [Look(k, data.draw(st.integers(n, n + 3))) for k in pairs]
    error = data.draw(st.sampled_from([0.02, 0.1, 0.3]))
    called = first_called(d, looks, error)
    assert len(called) <= error * 2**n + 1e-9
    observed = tuple(float(np.sign(x)) for x in d)
    assert is_below(d, looks, error) == (observed in called)


def test_a_look_at_which_nothing_can_be_called_costs_nothing() -> None:
    d = -np.linspace(1.0, 1.3, 6)
    assert p_below(d, [Look(2, 6), Look(3, 6), Look(6, 6)]) == pytest.approx(p_below(d), abs=1e-4)
    assert p_below(d, one_look(6)) == 1 / 64


def test_looking_again_costs_something_and_what_was_called_stays_called() -> None:
    rng = np.random.default_rng(3)
    early = -1.0 + 0.1 * rng.standard_normal(8)
    later = np.concatenate([early, [3.0, 4.0, 5.0, 6.0]])  # it turns round
    looks = [Look(8, 12), Look(12, 12)]
    assert p_below(early, looks[:1]) < 0.02
    assert p_below(later, looks) < 0.02
    assert p_below(later) > 0.5


def test_a_larger_most_than_at_an_earlier_look_spends_what_was_left() -> None:
    """As where `decide.max` is raised after a look that could call nothing."""
    d = -np.linspace(1.0, 1.3, 7)
    assert p_below(d, [Look(3, 3), Look(7, 7)]) == pytest.approx(1 / 128, abs=1e-4)


@pytest.mark.parametrize("looks", [(9,), (7, 9), (6, 7, 8, 9), (7, 8, 9, 10)], ids=str)
def test_p_agrees_with_what_is_called_at_the_errors_of_verdicts(looks: tuple[int, ...]) -> None:
    """For every sign pattern; where p is merely bisected, some are called that no look called."""
    n = looks[-1]
    size = np.abs(np.random.default_rng(n).standard_normal(n)) + 0.2
    seen = [Look(pairs, 12) for pairs in looks]
    patterns = list(itertools.product((1.0, -1.0), repeat=n))
    p = np.array([p_below(size * signs, seen) for signs in patterns])
    whole = np.ones(len(patterns), dtype=bool)
    for arms in (1, 2, 3):  # Holm's steps
        error = ALPHA / 2.0 / arms
        called = np.array([is_below(size * signs, seen, error) for signs in patterns])
        whole &= called
        assert ((p <= error) == whole).all()
        assert called.mean() <= error
        assert arms > 1 or called.any()


def test_patterns_are_all_there_are_and_drawn_ones_begin_as_observed() -> None:
    patterns = sign_patterns(4)
    assert {tuple(row) for row in patterns.tolist()} == set(itertools.product((1.0, -1.0), repeat=4))
    for n in (4, EXACT_PAIRS + 2):
        assert (sign_patterns(n)[0] == 1.0).all()
        assert sign_patterns(n).shape == (min(2**n, 2**EXACT_PAIRS), n)
