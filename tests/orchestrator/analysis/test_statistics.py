"""Paired statistics against enumeration, textbook formulas and a bootstrap written here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.analysis.statistics import (
    Interval,
    compare_paired,
    correlation,
    holm,
    in_sequence,
    interval,
    sign_flip_p,
    smallest_p,
    verdict,
)


def enumerated_p(d: list[float]) -> float:
    means = [np.mean(np.multiply(d, signs)) for signs in itertools.product((-1, 1), repeat=len(d))]
    return float(np.mean([abs(m) >= abs(np.mean(d)) - 1e-12 for m in means]))


def bca(d: np.ndarray, level: float, resamples: int) -> tuple[float, float]:
    """Efron's bias-corrected and accelerated interval of the mean, from the definition."""
    means = np.sort(np.random.default_rng(1).choice(d, (resamples, d.size)).mean(axis=1))
    below = np.mean(means < d.mean()) + 0.5 * np.mean(means == d.mean())
    z0 = scipy.stats.norm.ppf(below)
    left_out = (d.sum() - d) / (d.size - 1)
    u = left_out.mean() - left_out
    a = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    z = scipy.stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(means, scipy.stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))))
    return float(low), float(high)


def test_few_pairs_give_students_interval() -> None:
    d = np.array([0.3, -0.1, 0.2])
    half = 4.302652729749464 * d.std(ddof=1) / np.sqrt(3)  # t(0.975, 2)
    found = interval(d, 0.95)
    assert found.method == "Student t"
    assert [found.low, found.high] == pytest.approx([d.mean() - half, d.mean() + half], rel=1e-9)


@pytest.mark.parametrize("level", [0.90, 0.95])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_from_six_pairs_the_wider_end_of_bca_and_t(level: float, sign: float) -> None:
    d = sign * np.array([0.31, 0.12, 0.95, 0.22, 0.41, 0.18, 0.27, 1.4])
    found = interval(d, level)
    assert found.method == "BCa bootstrap and Student t"
    widened = 1 - 2 * scipy.stats.norm.cdf(-np.sqrt(8 / 7) * scipy.stats.t.ppf((1 + level) / 2, 7))  # Hesterberg 2015
    by_bca = bca(d, widened, 200_000)
    by_t = scipy.stats.ttest_1samp(d, 0.0).confidence_interval(level)
    assert found.low == pytest.approx(min(by_bca[0], by_t[0]), abs=0.1 * d.std())
    assert found.high == pytest.approx(max(by_bca[1], by_t[1]), abs=0.1 * d.std())
    assert by_bca[1] > by_t[1] if sign > 0 else by_bca[0] < by_t[0]  # the end towards the long tail is BCa's
    assert interval(d, level) == found  # fixed seed


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("d", [[0.0] * 7 + [1.0], [0.0, 1.0] * 4, [1e-300] * 7 + [2e-300], [1e9, 1e9 + 1e-6] * 3])
def test_hostile_samples_have_a_finite_interval_round_their_mean(d: list[float]) -> None:
    found = interval(d, 0.95)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= np.mean(d) <= found.high


def test_degenerate_samples_have_no_made_up_interval() -> None:
    assert interval([0.2], 0.95).low is None
    assert interval([], 0.95).high is None
    assert interval([0.25] * 8, 0.95) == Interval(0.25, 0.25, "all differences are equal")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=2, max_size=8))
def test_sign_flip_equals_enumeration(d: list[float]) -> None:
    p = sign_flip_p(d)
    assert p == pytest.approx(enumerated_p(d))
    assert p is not None
    assert p >= smallest_p(len(d)) - 1e-12


def test_smallest_p_is_reached_and_is_too_large_under_six_pairs() -> None:
    for n in range(2, 9):
        assert sign_flip_p(np.linspace(1.0, 1.3, n)) == pytest.approx(smallest_p(n))
    assert smallest_p(5) > 0.05 > smallest_p(6)
    assert sign_flip_p([0.4]) is None


@pytest.mark.parametrize(("n", "mean"), [(17, 0.5), (30, 0.2)])
def test_sign_flips_drawn_at_random_agree_with_scipys(n: int, mean: float) -> None:
    d = np.random.default_rng(n).normal(mean, 1.0, n)
    theirs = scipy.stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1).pvalue
    p = sign_flip_p(d)
    assert p is not None
    assert p == sign_flip_p(d)  # the same patterns every time
    assert abs(p - theirs) < 6 * (2 * p / 20_000) ** 0.5  # either is an estimate
    assert sign_flip_p(np.full(n, 0.3)) == pytest.approx(2 / (2**16 + 1), abs=2e-4)  # but for patterns of equal signs
    assert sign_flip_p(np.zeros(n)) == 1.0


def test_holm_on_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_correlation_needs_three_varying_pairs() -> None:
    a, b = [1.0, 2.0, 4.0], [2.0, 3.0, 7.0]
    assert correlation(a, b) == pytest.approx(scipy.stats.pearsonr(a, b).statistic)
    assert correlation(a[:2], b[:2]) is None
    assert correlation([1.0, 1.0, 1.0], b) is None


@pytest.mark.parametrize(
    ("wide", "narrow", "p", "expected"),
    [
        ((-0.5, -0.1), (-0.4, -0.2), 0.03, "better"),
        ((0.1, 0.5), (0.2, 0.4), 0.03, "worse"),
        ((-0.5, -0.1), (-0.4, -0.2), 0.06, "inconclusive"),  # the interval alone is not enough
        ((-0.5, 0.1), (-0.4, 0.0), 0.03, "inconclusive"),  # nor is p
        ((-0.02, 0.02), (-0.01, 0.01), 0.9, "equivalent"),
        ((-0.05, 0.05), (-0.04, 0.04), 0.9, "inconclusive"),
        ((None, None), (None, None), None, "inconclusive"),
    ],
)
def test_verdict(wide: tuple, narrow: tuple, p: float | None, expected: str) -> None:
    delta = 0.0 if wide[0] is None else sum(wide) / 2
    assert verdict(delta, Interval(*wide, "m"), Interval(*narrow, "m"), p, baseline=3.0) == expected


PRIMARY = (("test_loss", "mean"), ("at_flops", "mean"))


def pairs_of(seed: int, effect: float) -> tuple[list[float], list[float]]:
    a = list(3.0 + 0.1 * np.random.default_rng(seed).standard_normal(6))
    return a, [x + effect * (1 + 0.01 * i) for i, x in enumerate(a)]


def test_primary_outcomes_are_a_sequence_and_the_others_share_a_correction() -> None:
    a, b = pairs_of(0, -0.5)
    samples = {("test_loss", d): (a, b) for d in ("mean", "code", "facts", "math")} | {("at_flops", "mean"): (a, b)}
    primary, *others, second = compare_paired("b", samples, PRIMARY)
    assert primary.verdict == second.verdict == "better"
    assert primary.p == primary.p_adjusted == second.p_adjusted == pytest.approx(2 / 2**6)
    assert primary.delta == pytest.approx(np.mean(b) - np.mean(a))
    assert [o.p_adjusted for o in others] == pytest.approx([3 * 2 / 2**6] * 3)
    assert {o.verdict for o in others} == {"inconclusive"}


def test_the_second_outcome_is_not_judged_where_the_first_found_nothing() -> None:
    a = [3.0, 3.1, 3.2, 3.05, 2.9, 3.3]
    samples = {PRIMARY[0]: (a, [x + d for x, d in zip(a, (0.1, -0.1, 0.12, -0.09, 0.1, -0.11), strict=True)]),
               PRIMARY[1]: (a, [x - 0.5 - 0.01 * i for i, x in enumerate(a)])}  # fmt: skip
    first, second = compare_paired("b", samples, PRIMARY)
    assert first.p is not None
    assert first.p > 0.05
    assert second.p == pytest.approx(2 / 2**6)
    assert second.p_adjusted == first.p
    assert second.verdict == "inconclusive"


def test_a_sequence_ends_with_the_first_that_is_not_significant_or_unknown() -> None:
    assert in_sequence([0.01, 0.03, 0.2, 0.01]) == [0.01, 0.03, 0.2, 0.2]
    assert in_sequence([0.01, None, 0.01]) == [0.01, None, None]
    assert in_sequence([]) == []


def test_a_sequence_keeps_its_error() -> None:
    """True nulls are called in at most 5 % of experiments wherever in the sequence they stand."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(2000):
        nulls = rng.uniform(size=5)
        wrong += any(p is not None and p <= 0.05 for p in in_sequence([0.001, *nulls])[1:])
    assert wrong / 2000 < 0.065  # the nulls alone would be at 0.23


def test_five_pairs_are_never_enough() -> None:
    a = [3.0, 3.1, 3.2, 3.05, 2.9]
    b = [x - 1.0 - 0.01 * i for i, x in enumerate(a)]
    (found,) = compare_paired("b", {PRIMARY[0]: (a, b)}, PRIMARY)
    assert found.high is not None
    assert found.high < 0
    assert found.verdict == "inconclusive"


def test_identical_arms_are_equivalent() -> None:
    (found,) = compare_paired("b", {PRIMARY[0]: ([3.0, 3.1, 3.2], [3.0, 3.1, 3.2])}, PRIMARY)
    assert (found.delta, found.p, found.verdict) == (0.0, 1.0, "equivalent")
