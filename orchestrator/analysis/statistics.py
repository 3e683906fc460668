"""Compute statistics of paired differences; the replicate is the seed pair (SCIENCE §8)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import scipy
from numpy.typing import ArrayLike

ALPHA = 0.05
EQUIVALENCE = 0.01  # share of the baseline's mean within which a difference counts as none
BOOTSTRAP_FROM = 6  # pairs; with fewer, a bootstrap does not cover at its nominal rate
RESAMPLES = 9_999
EXACT_PAIRS = 16  # most pairs for which the sign-flip test takes all 2^n patterns; beyond, it draws 2^16 at random
BLOCK = 2**12  # patterns drawn at a time
MAX_PATTERNS = 2**14  # most sign patterns for several outcomes at once; beyond, they are drawn


@dataclass(frozen=True)
class Interval:
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
    low90: float | None  # 90 % interval, on which `equivalent` is based
    high90: float | None
    method: str
    p: float | None  # two-sided sign-flip, exact up to 16 pairs
    p_adjusted: float | None  # for the verdict: in a fixed sequence, or by Holm
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


def sign_flip_p(differences: ArrayLike) -> float | None:
    """Return the two-sided sign-flip p of the mean: over all 2^n patterns up to 16 pairs, beyond random ones.

    Null for one pair.
    """
    x = np.asarray(differences, dtype=np.float64)
    if x.size < 2:
        return None
    if x.size > EXACT_PAIRS:
        return _drawn_sign_flip_p(x)
    test = scipy.stats.permutation_test(
        (x,), np.mean, permutation_type="samples", n_resamples=2**EXACT_PAIRS, vectorized=True, rng=0
    )
    return float(test.pvalue)


def _drawn_sign_flip_p(x: np.ndarray) -> float:
    """Return the same over 2^16 random patterns, by scipy's rule: twice the smaller side, the data counted in both.

    scipy itself would hold every pattern's values, which takes seconds per outcome for hundreds of pairs.
    """
    rng, drawn, (less, greater) = np.random.default_rng(0), 2**EXACT_PAIRS, (1, 1)
    within = 1e-14 * abs(x.sum())  # tolerance of rounding
    for _ in range(0, drawn, BLOCK):
        sums = np.where(rng.integers(0, 2, (BLOCK, x.size), dtype=np.int8), x, -x).sum(axis=1)
        less += int(np.count_nonzero(sums <= x.sum() + within))
        greater += int(np.count_nonzero(sums >= x.sum() - within))
    return min(1.0, 2.0 * min(less, greater) / (drawn + 1))


def smallest_p(n: int) -> float:
    """Return the smallest p that the sign-flip test can give with n pairs."""
    return min(1.0, 2.0 / 2.0**n)


def sign_patterns(n: int) -> np.ndarray:
    """Return the signs of n differences, [patterns, n], the first all +; of a pattern and its negative only one."""
    if 2 ** (n - 1) <= MAX_PATTERNS:
        return np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=n - 1)])
    signs = np.random.default_rng(0).choice((1.0, -1.0), (MAX_PATTERNS, n))
    signs[0] = 1.0
    return signs


FEWEST_PAIRS = next(n for n in range(1, 99) if smallest_p(n) <= ALPHA)  # to call a loss better or worse


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


def verdict(delta: float, interval95: Interval, interval90: Interval, p: float | None, baseline: float) -> str:
    """Return better, worse, equivalent or inconclusive for a loss (lower is better)."""
    low, high = interval95.low, interval95.high
    if p is not None and low is not None and high is not None and p <= ALPHA and not low <= 0.0 <= high:
        return "better" if delta < 0.0 else "worse"
    margin = EQUIVALENCE * abs(baseline)
    low, high = interval90.low, interval90.high
    if low is not None and high is not None and -margin <= low and high <= margin:
        return "equivalent"
    return "inconclusive"


def compare_paired(
    arm: str, samples: dict[tuple[str, str], tuple[list[float], list[float]]], primary: Sequence[tuple[str, str]]
) -> list[PairedResult]:
    """Compare every (metric, domain) of `samples`, which holds the values of arms a and b in seed order.

    Those of `primary` are tested as a fixed sequence in that order; the p values of the others share a Holm correction.
    """
    p = {key: sign_flip_p(np.subtract(b, a)) for key, (a, b) in samples.items()}
    first = [key for key in primary if key in samples]
    secondary = {key: value for key, value in p.items() if key not in first and value is not None}
    adjusted = p | dict(zip(first, in_sequence([p[key] for key in first]), strict=True))
    adjusted |= zip(secondary, holm(list(secondary.values())), strict=True)
    results = []
    for key, (a, b) in samples.items():
        difference = np.subtract(b, a)  # [n]
        delta, baseline = float(difference.mean()), float(np.mean(a))
        wide, narrow = interval(difference, 0.95), interval(difference, 0.90)
        results.append(
            PairedResult(
                *key, arm, len(a), a=baseline, b=float(np.mean(b)), delta=delta, low=wide.low, high=wide.high,
                low90=narrow.low, high90=narrow.high, method=wide.method, p=p[key], p_adjusted=adjusted[key],
                correlation=correlation(a, b),
                verdict=verdict(delta, wide, narrow, adjusted[key], baseline),
            )
        )  # fmt: skip
    return results
