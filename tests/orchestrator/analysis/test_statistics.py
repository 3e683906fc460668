"""Paired statistics against enumeration, textbook formulas and a bootstrap written here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import scipy.stats

from orchestrator.analysis.statistics import (
    Interval,
    PairedResult,
    Samples,
    compare_paired,
    correlation,
    holm,
    in_sequence,
    interval,
    p_outside,
    p_within,
    verdict,
)


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
    ("ends", "p", "equal", "expected"),
    [
        ((-0.5, -0.1), 0.03, None, "better"),
        ((0.1, 0.5), 0.03, 0.9, "worse"),
        ((-0.5, -0.1), 0.045, 0.9, "inconclusive"),  # the interval alone is not enough
        ((-0.5, 0.1), 0.03, 0.9, "inconclusive"),  # nor is p
        ((-0.02, 0.02), 0.9, 0.03, "equivalent"),
        ((-0.02, 0.02), 0.9, 0.06, "inconclusive"),
        ((-0.02, -0.01), 0.03, 0.03, "better"),  # and within the margin
        ((-0.05, 0.02), 0.9, 0.03, "inconclusive"),
        ((None, None), None, None, "inconclusive"),
    ],
)
def test_verdict(ends: tuple, p: float | None, equal: float | None, expected: str) -> None:
    assert verdict(*ends, margin=0.03, p=p, p_equal=equal) == expected


def test_within_and_outside_are_both_one_sided_tests() -> None:
    x = np.linspace(0.1, 0.3, 6)
    assert p_within(x, 0.0, 0.5) == pytest.approx(2 / 64)
    assert p_within(x, 0.2, 0.5) == 1.0  # half of them below
    assert p_outside(x, 0.35, 0.5) == pytest.approx(2 / 64)
    assert p_outside(x, -0.5, 0.05) == pytest.approx(2 / 64)
    assert p_outside(x, 0.0, 0.5) == 1.0
    assert p_within([0.1], 0.0, 1.0) is p_outside([0.1], 0.0, 1.0) is None


PRIMARY = (("test_loss", "mean"), ("at_flops", "mean"))


def compared(arms: Mapping[str, Samples]) -> list[PairedResult]:
    return compare_paired(arms, PRIMARY, 0.0025, {})


def pairs_of(seed: int, effect: float) -> tuple[list[float], list[float]]:
    a = list(3.0 + 0.1 * np.random.default_rng(seed).standard_normal(6))
    return a, [x + effect * (1 + 0.01 * i) for i, x in enumerate(a)]


def test_primary_outcomes_are_a_sequence_and_the_others_share_a_correction() -> None:
    a, b = pairs_of(0, -0.5)
    samples = {("test_loss", d): (a, b) for d in ("mean", "code", "facts", "math")} | {("at_flops", "mean"): (a, b)}
    primary, *others, second = compared({"b": samples})
    assert primary.verdict == second.verdict == "better"
    assert primary.p == primary.p_adjusted == second.p_adjusted == pytest.approx(2 / 2**6)
    assert primary.delta == pytest.approx(np.mean(b) - np.mean(a))
    assert [o.p_adjusted for o in others] == pytest.approx([3 * 2 / 2**6] * 3)
    assert {o.verdict for o in others} == {"inconclusive"}


def test_the_second_outcome_is_not_judged_where_the_first_found_nothing() -> None:
    a = [3.0, 3.1, 3.2, 3.05, 2.9, 3.3]
    samples = {PRIMARY[0]: (a, [x + d for x, d in zip(a, (0.1, -0.1, 0.12, -0.09, 0.1, -0.11), strict=True)]),
               PRIMARY[1]: (a, [x - 0.5 - 0.01 * i for i, x in enumerate(a)])}  # fmt: skip
    first, second = compared({"b": samples})
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
    (found,) = compared({"b": {PRIMARY[0]: (a, b)}})
    assert found.high is not None
    assert found.high < 0
    assert found.verdict == "inconclusive"


def test_identical_arms_are_equivalent_from_six_pairs_on() -> None:
    a = [3.0, 3.1, 3.2, 3.05, 2.9, 3.3]
    (found,) = compared({"b": {PRIMARY[0]: (a, a)}})
    assert (found.delta, found.p, found.p_equivalent, found.verdict) == (0.0, 1.0, 2 / 64, "equivalent")
    (found,) = compared({"b": {PRIMARY[0]: (a[:5], a[:5])}})
    assert found.verdict == "inconclusive"  # as any other word would be


def test_the_arms_share_one_error() -> None:
    """Six pairs that all point one way decide of one arm, and of nine arms nothing."""
    a, b = pairs_of(0, -0.5)
    arms = {f"arm{i}": {PRIMARY[0]: (a, b)} for i in range(9)}
    found = compared(arms)
    assert [r.p_adjusted for r in found] == pytest.approx([9 * 2 / 64] * 9)
    assert {r.verdict for r in found} == {"inconclusive"}
    assert {r.verdict for r in compared({arm: {PRIMARY[0]: (a, a)} for arm in arms})} == {"inconclusive"}


def test_the_margin_is_a_share_of_the_baseline() -> None:
    a = [3.0, 3.1, 3.2, 3.05, 2.9, 3.3]
    b = [x + 0.004 + 0.0001 * i for i, x in enumerate(a)]  # 0.13 %
    b[0] -= 0.009
    (found,) = compare_paired({"b": {PRIMARY[0]: (a, b)}}, PRIMARY, 0.0025, {})
    assert found.margin == pytest.approx(0.0025 * np.mean(a))
    assert found.verdict == "equivalent"
    assert compare_paired({"b": {PRIMARY[0]: (a, b)}}, PRIMARY, 0.001, {})[0].verdict == "inconclusive"
