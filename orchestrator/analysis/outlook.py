"""Estimate how many pairs would decide a question, if differences go on as they are (SCIENCE §8)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import count, islice

import numpy as np
import scipy

from orchestrator.analysis.cells import ExperimentResult
from orchestrator.analysis.migration import state_gaps
from orchestrator.analysis.sign_flip import draw_patterns
from orchestrator.common.formatting import roughly
from orchestrator.config.schema import AUTO, DecideConfig
from orchestrator.experiments.decision import ALPHA, FEWEST_PAIRS, smallest_p

POWER = 0.8  # chance of a decision with the number of pairs that is named
MOST = 500  # pairs beyond which no number is named
EACH = 12  # numbers of pairs that are all tried; of larger ones, every twentieth part
DRAWS = 2000  # of a mean and a standard deviation
DRAWN, EXCHANGES = 40, 300  # experiments drawn for each number of pairs, and exchanges of their arms
FEWEST_TO_DRAW_FROM = 4  # pairs
LISTED = 12  # most seeds that a sentence lists
Band = tuple[float, float]


def power(mean: float, std: float, n: int, *, outside: Band, within: Band, error: float = ALPHA) -> float:
    """Return the chance that n normal differences decide: their mean is shown to lie `outside` or `within` a band.

    Decided is by Student's t at the two-sided `error`, for which the sign-flip test needs about as many pairs.
    """
    if smallest_p(n) > error:
        return 0.0
    rng = np.random.default_rng(0)
    means = mean + std / np.sqrt(n) * rng.standard_normal(DRAWS)
    half = std * np.sqrt(rng.chisquare(n - 1, DRAWS) / (n - 1) / n) * scipy.stats.t.ppf(1.0 - error / 2.0, n - 1)
    low, high = means - half, means + half
    decided = (high < outside[0]) | (low > outside[1]) | ((low > within[0]) & (high < within[1]))
    return float(decided.mean())


def pairs_to_decide(values: Sequence[float], *, outside: Band, within: Band, error: float = ALPHA) -> int | None:
    """Return the pairs that decide with a chance of `POWER` in all; null under two values or above `MOST`."""
    if len(values) < 2:
        return None
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    return fewest(lambda n: power(mean, std, n, outside=outside, within=within, error=error), len(values) + 1)


def seeds_to_agree(holding: int, n: int) -> int | None:
    """Return the seeds with which a sign test decides with a chance of `POWER`, where `holding` of n hold now."""
    share = max(holding, n - holding) / max(n, 1)

    def chance(seeds: int) -> float:
        counts = np.arange(seeds + 1)
        decisive = counts[np.minimum(1.0, 2.0 * scipy.stats.binom.sf(counts - 1, seeds, 0.5)) <= ALPHA]
        return float(scipy.stats.binom.sf(decisive[0] - 1, seeds, share)) if decisive.size else 0.0

    return fewest(chance, n + 1) if n else None


def pairs_to_move(a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> int | None:
    """Return the pairs with which the roles differ with a chance of `POWER`, by drawing from the pairs that are there.

    `a`, `b`: the roles of each pair's layers in both arms. Null under four pairs, of which too few can be drawn.
    """
    if len(a) < FEWEST_TO_DRAW_FROM:
        return None
    rng, gaps = np.random.default_rng(0), state_gaps(a, b)  # [n, L, 6]

    def chance(pairs: int) -> float:
        return float(np.mean([_differ(gaps[rng.integers(len(a), size=pairs)], rng) for _ in range(DRAWN)]))

    return fewest(chance, len(a) + 1)


def _differ(gaps: np.ndarray, rng: np.random.Generator) -> bool:
    """Return true where the distance between the arms' states is significant under random exchanges."""
    signs = draw_patterns(len(gaps), EXCHANGES, rng)
    distances = np.abs(np.tensordot(signs, gaps, axes=1)).sum(axis=(1, 2))
    return bool((distances >= distances[0]).mean() <= ALPHA)


def fewest(chance: Callable[[int], float], least: int = FEWEST_PAIRS) -> int | None:
    """Return the fewest pairs, at least `least`, whose chance of a decision is `POWER`; null above `MOST`."""
    first = max(least, FEWEST_PAIRS)
    candidates = sorted({*range(first, first + EACH), *(round(first * 1.06**i) for i in range(120))})
    return next((n for n in candidates if n <= MOST and chance(n) >= POWER), None)


def detectable(std: float, n: int, error: float = ALPHA) -> float | None:
    """Return the smallest mean difference that n pairs detect with a chance of `POWER`; null where n pairs cannot.

    `std`: standard deviation of the differences. By Student's t: (t(1 − error/2) + t(POWER)) · std / √n.
    """
    if smallest_p(n) > error:
        return None
    t = scipy.stats.t(n - 1)
    return float((t.ppf(1.0 - error / 2.0) + t.ppf(POWER)) * std / np.sqrt(n))


def seconds_of(pairs: int, experiment: ExperimentResult) -> float | None:
    """Return the wall seconds in which a launch here adds `pairs` of every arm; null where no cell has finished.

    As many cells run at once as the last launch allowed, each for as long as the finished ones took on average. With
    `seeds: auto`, the pairs of one look end before those of the next begin.
    """
    took = [cell.metrics[-1]["seconds"] for cell in experiment.cells if not cell.missing]
    if not took or not all(isinstance(seconds, int | float) for seconds in took):
        return None
    slots = experiment.launcher.get("parallel") or len(os.sched_getaffinity(0))
    step = experiment.decide.get("step", DecideConfig.step) if experiment.decide.get(AUTO) else pairs
    looks = [min(step, pairs - begun) for begun in range(0, pairs, step)]
    return float(np.mean(took)) * sum(math.ceil(n * len(experiment.arms) / slots) for n in looks)


def more_pairs(more: int, experiment: ExperimentResult, *, losses_decided: bool = False) -> str:
    """Say that as many more pairs of every arm would decide, the time they take, and the override that adds them.

    `losses_decided`: the loss of every arm is decided, so that `seeds: auto` adds no more.
    """
    seconds = seconds_of(more, experiment)
    price = "" if seconds is None else f", {roughly(seconds)} here,"
    return f"About {more} more pair{'s' * (more != 1)}{price} would decide it{_cure(more, experiment, losses_decided)}."


def _cure(more: int, experiment: ExperimentResult, losses_decided: bool) -> str:
    """Return the clause with the override; empty where `seeds: auto` adds the pairs anyway, or it would be long."""
    seeds, adds = experiment.seeds, f"adds {'them' if more != 1 else 'it'}"
    if experiment.decide.get(AUTO) and not losses_decided:
        within = len(seeds) + more <= experiment.decide.get("max", DecideConfig.max)
        return "" if within else f": decide.max={len(seeds) + more} {adds}"
    every = [*seeds, *islice((seed for seed in count() if seed not in seeds), more)]
    return f": seeds=[{','.join(map(str, every))}] {adds}" if len(every) <= LISTED else ""
