"""Compute statistics of paired differences; the replicate is the seed pair (SCIENCE §8)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from orchestrator.analysis.sign_flip import Look, p_below, p_two_sided
from orchestrator.experiments.decision import ALPHA

MARGIN = 0.0025  # by default: share of the baseline's mean within which a difference counts as none
BOOTSTRAP_FROM = 6  # pairs; with fewer, a bootstrap does not cover at its nominal rate
RESAMPLES = 9_999

Outcome = tuple[str, str]  # metric, domain
P = dict[tuple[str, Outcome], float | None]  # (arm, outcome) → p
Samples = Mapping[Outcome, tuple[Sequence[float], Sequence[float]]]  # the values of both arms, pair by pair


class Interval(NamedTuple):
    """A two-sided confidence interval of a mean; both ends null under two values."""

    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True)
class PairedResult:
    """One loss over the seed pairs. `delta` = b − a; lower is better; the verdict is on arm b."""

    metric: str
    domain: str
    arm: str  # arm b; arm a is the baseline
    n: int
    a: float
    b: float
    delta: float
    low: float | None  # 95 % interval of delta
    high: float | None
    method: str
    p: float | None  # two-sided sign-flip, over all looks
    p_adjusted: float | None  # for the verdict: by Holm over the arms and in a fixed sequence, or by Holm over outcomes
    p_equivalent: float | None  # of a difference within the margin, corrected likewise
    margin: float  # nats/token: a difference within ± it counts as none
    correlation: float | None  # between the arms over the seeds
    verdict: str  # better · worse · equivalent · inconclusive


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known values; null where none is known."""
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def interval(values: ArrayLike, level: float) -> Interval:
    """Return the interval of the mean: Student's t; from six values each end is the outer one of t and a BCa bootstrap.

    Neither suffices alone. A nominal 95 % BCa interval of six normal values covers 85 %, so its level is widened as
    t's is (Hesterberg 2015, The American Statistician 69:371). t misses skewed means on one side. Simulated coverage
    at 6 to 20 values: at least 95 % for symmetric samples, 91 to 94 % for exponential and 86 to 92 % for lognormal
    ones (tests/benchmarks/bench_statistics.py).
    """
    x = np.asarray(values, dtype=np.float64)  # [n]
    if x.size < 2:
        return Interval(None, None, "none: an interval needs two pairs")
    if np.ptp(x) == 0.0:
        return Interval(float(x[0]), float(x[0]), "all differences are equal")
    quantile = scipy.stats.t.ppf((1.0 + level) / 2.0, x.size - 1)
    half = quantile * scipy.stats.sem(x)
    low, high = x.mean() - half, x.mean() + half
    if x.size >= BOOTSTRAP_FROM:
        widened = 2.0 * scipy.stats.norm.cdf(quantile * np.sqrt(x.size / (x.size - 1))) - 1.0
        with warnings.catch_warnings(action="ignore"):  # where BCa is undefined it warns and gives NaN: then t counts
            found = scipy.stats.bootstrap(
                (x,), np.mean, confidence_level=widened, n_resamples=RESAMPLES, method="BCa", rng=0
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            return Interval(float(min(low, found.low)), float(max(high, found.high)), "BCa bootstrap and Student t")
    return Interval(float(low), float(high), "Student t")


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values, in the order given."""
    order = np.argsort(p, kind="stable")
    adjusted, running = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return adjusted


def in_sequence(p: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for a fixed sequence of tests: each becomes the largest so far, and null after an unknown one.

    Each is tested at the full level while all before it were significant, which controls the error of the sequence
    (Maurer, Hothorn & Lehmacher 1995; Westfall & Krishen 2001).
    """
    adjusted: list[float | None] = []
    largest: float | None = 0.0
    for value in p:
        largest = None if largest is None or value is None else max(largest, value)
        adjusted.append(largest)
    return adjusted


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Pearson's r; null under three pairs or where an arm does not vary."""
    if len(a) < 3 or np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def verdict(low: float | None, high: float | None, margin: float, p: float | None, p_equal: float | None) -> str:
    """Return better, worse, equivalent or inconclusive for the difference of a loss (lower is better).

    `low`, `high`: its 95 % interval. Better, worse: it excludes 0, and the corrected `p` is at most `ALPHA`.
    Equivalent: it lies within ± `margin`, and so does `p_equal`, the corrected `p_within` that margin.
    """
    if low is None or high is None:
        return "inconclusive"
    if p is not None and p <= ALPHA and not low <= 0.0 <= high:
        return "better" if high < 0.0 else "worse"
    if p_equal is not None and p_equal <= ALPHA and -margin < low and high < margin:
        return "equivalent"
    return "inconclusive"


def p_within(values: ArrayLike, low: float, high: float, looks: Sequence[Look] = ()) -> float | None:
    """Return the p of a mean between `low` and `high`: twice the larger of both one-sided ones (Schuirmann 1987).

    Null for one value.
    """
    x = np.asarray(values, dtype=np.float64)
    return min(1.0, 2.0 * max(p_below(x - high, looks), p_below(low - x, looks))) if x.size > 1 else None


def p_outside(values: ArrayLike, low: float, high: float) -> float | None:
    """Return the p of a mean below `low` or above `high`: twice the smaller of both one-sided ones.

    Null for one value.
    """
    x = np.asarray(values, dtype=np.float64)
    return min(1.0, 2.0 * min(p_below(x - low), p_below(high - x))) if x.size > 1 else None


def compare_paired(
    arms: Mapping[str, Samples], primary: Sequence[Outcome], margin: float, looks: Mapping[str, Sequence[Look]]
) -> list[PairedResult]:
    """Compare every outcome of every arm with the baseline's.

    The p values of each primary outcome share a Holm correction over the arms; those of one arm are tested as a fixed
    sequence in the order of `primary`. The p values of an arm's other outcomes share another. `margin`: a share of
    the baseline's mean. `looks`: those at each arm's pairs; an arm without any had one.
    """
    samples = {(arm, key): values for arm, own in arms.items() for key, values in own.items()}
    x = {one: np.subtract(b, a) for one, (a, b) in samples.items()}  # [n] each
    band = {one: margin * abs(float(np.mean(a))) for one, (a, _) in samples.items()}
    seen = {one: looks.get(one[0], ()) for one in samples}
    p = {one: p_two_sided(x[one], seen[one]) for one in samples}
    equal = _over_arms({one: p_within(x[one], -band[one], band[one], seen[one]) for one in samples}, primary)
    adjusted = _over_arms(p, primary)
    for arm in arms:
        first = [(arm, key) for key in primary if (arm, key) in samples]
        adjusted |= zip(first, in_sequence([adjusted[one] for one in first]), strict=True)
    results = []
    for one, (a, b) in samples.items():
        (arm, (metric, domain)), within = one, interval(x[one], 0.95)
        results.append(
            PairedResult(
                metric, domain, arm, len(a), a=float(np.mean(a)), b=float(np.mean(b)), delta=float(x[one].mean()),
                low=within.low, high=within.high, method=within.method, p=p[one], p_adjusted=adjusted[one],
                p_equivalent=equal[one], margin=band[one], correlation=correlation(a, b),
                verdict=verdict(within.low, within.high, band[one], adjusted[one], equal[one]),
            )
        )  # fmt: skip
    return results


def _over_arms(p: P, primary: Sequence[Outcome]) -> P:
    """Correct each primary outcome's p over the arms, and the others of each arm together, by Holm."""
    families: dict[tuple[str, ...], list[tuple[str, Outcome]]] = {}
    for arm, key in p:
        families.setdefault(key if key in primary else (arm,), []).append((arm, key))
    adjusted: P = {}
    for family in families.values():
        known = {one: value for one in family if (value := p[one]) is not None}
        adjusted |= dict.fromkeys(family) | dict(zip(known, holm(list(known.values())), strict=True))
    return adjusted
