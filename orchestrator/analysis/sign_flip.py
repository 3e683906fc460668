"""Test a mean of paired differences by flipping their signs, at one look or at several (SCIENCE §8).

Several looks share one error, as in a group-sequential trial: at each, the sign patterns that were not called at an
earlier look are ordered by their sums, and as many are called as the share of the error that may be spent by then
allows. It is exact for symmetric differences of any law (Mehta, Patel & Senchaudhuri 1994, Biometrics 50:1042). The
error is spent in proportion to the pairs, as Kim & DeMets (1987, Biometrika 74:149) spend it with power 1; a look
leaves to the next one what it cannot spend.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.experiments.decision import ALPHA

EXACT_PAIRS = 14  # most pairs for which all 2^n sign patterns are taken; beyond, 2^14 are drawn at random
BISECTIONS = 16  # of a p between two levels, to an error of 2^−16
TOLERANCE = 1e-12  # sums within it are equal
LEVELS = tuple(ALPHA / 2.0 / arms * (1.0 - TOLERANCE) for arms in range(1, 13))  # one-sided errors of verdicts, by Holm


class Look(NamedTuple):
    """One time at which a result was looked at, and at which the experiment could have ended."""

    pairs: int  # complete then
    most: int  # pairs after which it would have ended in any case


def one_look(n: int) -> tuple[Look, ...]:
    """Return the looks of an experiment whose number of pairs was fixed beforehand."""
    return (Look(n, n),)


def p_below(differences: ArrayLike, looks: Sequence[Look] = ()) -> float:
    """Return the one-sided p of a mean below 0: the error from which on one of the looks calls it.

    `differences`: [n], in the order in which the pairs were added. `looks`: by default one, at all pairs. With several,
    patterns are called by whole numbers, so that one may be called with some error and not with a little more. What
    is called at `LEVELS` is therefore asked first: p is at most one of them if the mean is called with that error and
    with all larger ones of them.
    """
    x = np.asarray(differences, dtype=np.float64)
    looks = looks or one_look(x.size)
    sums = _sums(x, [look.pairs for look in looks])
    if len(looks) == 1:
        share = looks[0].pairs / looks[0].most
        return min(1.0, float((sums[0] <= sums[0, 0] + TOLERANCE).mean()) / share)
    if not _called(sums, looks, 1.0):
        return 1.0
    low, high = 0.0, 1.0  # not called … called
    for level in LEVELS:
        if not _called(sums, looks, level):
            low = level
            break
        high = level
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if _called(sums, looks, middle) else (middle, high)
    return high


def is_below(differences: ArrayLike, looks: Sequence[Look], error: float) -> bool:
    """Return true where one of the looks called the mean below 0 with this one-sided `error` over all of them."""
    x = np.asarray(differences, dtype=np.float64)
    return _called(_sums(x, [look.pairs for look in looks]), looks, error)


def p_two_sided(differences: ArrayLike, looks: Sequence[Look] = ()) -> float | None:
    """Return twice the smaller of both one-sided p, at most 1; null for one pair."""
    x = np.asarray(differences, dtype=np.float64)
    return min(1.0, 2.0 * min(p_below(x, looks), p_below(-x, looks))) if x.size > 1 else None


def _sums(x: np.ndarray, pairs: Sequence[int]) -> np.ndarray:
    """Return the sum of the first pairs of each look under every sign pattern, [looks, patterns], as observed first."""
    signs = sign_patterns(max(pairs))
    return np.stack([signs[:, :n] @ x[:n] for n in pairs])


@lru_cache(maxsize=8)
def sign_patterns(n: int) -> np.ndarray:
    """Return the signs of n differences, [patterns, n], the first all +: all 2^n, or beyond `EXACT_PAIRS` drawn ones.

    To flip the sign of a paired difference is to exchange the arms within the pair.
    """
    if n <= EXACT_PAIRS:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
    else:
        signs = draw_patterns(n, 2**EXACT_PAIRS, np.random.default_rng(0))
    signs.flags.writeable = False  # as every caller gets the same array
    return signs


def draw_patterns(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return random signs of n differences, [count, n], the first all +."""
    signs = rng.choice((1.0, -1.0), (count, n))
    signs[0] = 1.0
    return signs


def _called(sums: np.ndarray, looks: Sequence[Look], error: float) -> bool:
    """Return true where the first pattern is called at some look; the most negative sums are called first."""
    patterns = sums.shape[1]
    alive, spent = np.ones(patterns, dtype=bool), 0
    for s, look in zip(sums, looks, strict=True):
        may = int(error * min(1.0, look.pairs / look.most) * patterns + 1e-9) - spent
        if may <= 0:
            continue
        called = alive & (s <= _bound(s[alive], may))
        if called[0]:
            return True
        spent += int(called.sum())
        alive &= ~called
    return False


def _bound(sums: np.ndarray, may: int) -> float:
    """Return the largest sum at or below which at most `may` of `sums` lie; −∞ where too many are equal."""
    if may >= sums.size:
        return np.inf
    ordered = np.partition(sums, [may - 1, may])
    if ordered[may] > ordered[may - 1] + TOLERANCE:
        return float(ordered[may - 1])
    below = sums[sums < ordered[may] - TOLERANCE]
    return float(below.max()) if below.size else -np.inf
