"""Judge whether an arm conserves the baseline's specialist budget while it moves (SCIENCE §4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.common_step import CommonStep, common_step_of_pairs
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.sign_flip import p_two_sided, sign_patterns
from orchestrator.analysis.statistics import (
    Interval,
    interval,
    mean_of_known,
    p_outside,
    p_within,
)
from orchestrator.experiments.decision import ALPHA, FEWEST_PAIRS
from orchestrator.forensics.reading import centre, depths, profile, thirds, total

THRESHOLDS = {"saturated_robust": "robust", "saturated_fixed": "fixed", "saturated": "mean + 3 std"}
REFERENCES = tuple(THRESHOLDS)  # claims rest on the first
UNCLAIMED = "saturated"  # its threshold moves with the layer's own spread (SCIENCE §1)
REGIONS = ("stack", "middle", "late")  # the whole stack, its middle third, its last third
CONSERVED = (0.80, 1.25)  # the ratio of what exceeds chance must lie inside
CHANCE_QUANTILE = 0.975  # of a Poisson count at the expected number: a budget up to it is no larger than chance
EQUAL = "All seeds have the same ratio, which gives no interval."
CHANCE = f"chance ({100 * CHANCE_QUANTILE:g} % Poisson quantile at the drawn layers' mean count)"


@dataclass(frozen=True)
class Conservation:
    """The budgets of the baseline (a) and of `arm` (b) in one region at their common step; null means not known.

    The excess of a budget is what exceeds the count by chance.
    """

    arm: str
    reference: str
    region: str
    step: int | None  # of the readings
    n: int  # pairs with a ratio
    budget_a: float | None  # mean over pairs, saturated positions
    budget_b: float | None
    expected_a: float | None  # mean over pairs, by chance
    expected_b: float | None
    layers_a: float | None  # mean over pairs: exp of the entropy of the excess over the layers, the layers that hold it
    layers_b: float | None
    centre_a: float | None  # mean over pairs, 0 (first layer) … 1 (last)
    centre_b: float | None
    centre_shift: float | None  # mean of centre b − centre a over the pairs in which both have one
    centre_low: float | None  # its 95 % interval
    centre_high: float | None
    centre_p: float | None  # two-sided sign-flip
    distance: float | None  # mean over pairs, Wasserstein-1 along depth 0…1
    moved_p: float | None  # that both budgets lie alike along depth: exchange of the arms within the pairs
    ratios: dict[int, float | None]  # seed → excess_b / excess_a
    ratio: float | None  # geometric mean
    low: float | None  # 95 % interval
    high: float | None
    method: str
    p: float | None  # for a ratio inside, or else outside, `CONSERVED`: two-sided sign-flip of its logarithm
    verdict: str  # conserved · nothing moved · not conserved · inconclusive · no larger than chance · not claimed · …
    sentence: str  # reasons and caveats, or empty


def distance(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Wasserstein-1 between two budgets [L] along depth 0…1, each scaled to sum 1; null where one is empty."""
    if a.sum() <= 0.0 or b.sum() <= 0.0:
        return None
    return float(scipy.stats.wasserstein_distance(depths(a), depths(b), a, b))


def conservation(cell: CellResult) -> list[dict[str, Any]]:
    """Return a row per reading and threshold (reference); one that was not measured has no row."""
    rows = []
    for step, reading in cell.readings.items():
        for reference in REFERENCES:
            budget = profile(reading, reference)
            if budget is None:
                continue
            spent, expected = float(budget.sum()), total(reading, f"{reference}_expected")
            early, middle, late = thirds(budget)
            rows.append(
                {
                    "arm": cell.arm, "seed": cell.seed, "step": step, "reference": reference, "budget": spent,
                    "expected": expected, "excess": None if expected is None else spent - expected,
                    "early": early, "middle": middle, "late": late, "centre": centre(budget),
                }
            )  # fmt: skip
    return rows


class _Side(NamedTuple):
    """One arm's budget in a region, [L], and the count by chance of each of these layers."""

    budget: np.ndarray
    expected: np.ndarray | None

    @property
    def excess(self) -> float | None:
        return None if self.expected is None else float(self.budget.sum() - self.expected.sum())

    @property
    def layers(self) -> float | None:
        """exp of the entropy of the excess over the layers; null where no layer exceeds chance."""
        above = np.clip(self.budget - (0.0 if self.expected is None else self.expected), 0.0, None)
        return float(np.exp(scipy.stats.entropy(above))) if above.sum() > 0.0 else None


class _Both(NamedTuple):
    """Both arms' budgets of one pair in a region."""

    seed: int
    a: _Side
    b: _Side

    @property
    def ratio(self) -> float | None:
        """Excess of b over that of a; null unless both are positive."""
        a, b = self.a.excess, self.b.excess
        return b / a if a is not None and b is not None and a > 0.0 and b > 0.0 else None

    @property
    def shift(self) -> float | None:
        """Centre of b minus centre of a, as a share of the depth; null where either budget is empty."""
        a, b = centre(self.a.budget), centre(self.b.budget)
        return None if a is None or b is None else b - a

    @property
    def gap(self) -> np.ndarray | None:
        """Share of the budget up to each depth, b minus a, on a common grid; null where either budget is empty."""
        if self.a.budget.sum() <= 0.0 or self.b.budget.sum() <= 0.0:
            return None
        grid = np.union1d(depths(self.a.budget), depths(self.b.budget))
        below = [np.interp(grid, depths(s.budget), s.budget.cumsum() / s.budget.sum()) for s in (self.a, self.b)]
        return below[1] - below[0]


def _both(pair: Pair, step: int, reference: str, region: str) -> _Both | None:
    """Return both budgets over the threshold `reference`; None where a cell lacks that count."""
    sides = []
    for cell in pair.cells:
        budget, expected = (profile(cell.readings[step], key) for key in (reference, f"{reference}_expected"))
        if budget is None:
            return None
        sides.append(_Side(_part(budget, region), None if expected is None else _part(expected, region)))
    return _Both(pair.seed, *sides)


def _part(budget: np.ndarray, region: str) -> np.ndarray:
    """Return the layers of `region`; the thirds are those of `thirds`."""
    return budget if region == REGIONS[0] else np.array_split(budget, 3)[REGIONS.index(region)]


def conserve(arm: str, pairs: list[Pair], reference: str, region: str = REGIONS[0]) -> Conservation:
    """Judge whether `arm` conserves the baseline's budget, over its complete pairs read at their common step."""
    at = common_step_of_pairs(arm, pairs)
    read = [] if at.step is None or at.untrained else [(p.seed, _both(p, at.step, reference, region)) for p in at.read]
    both = [one for _, one in read if one is not None]
    found = _measured(arm, reference, region, at, both)
    if not both:
        return found
    verdict, notes = _judge(found)
    if uncounted := [str(seed) for seed, one in read if one is None]:
        notes.append(f"Seeds left out because they lack this count: {', '.join(uncounted)}.")
    return replace(found, verdict=verdict, sentence=" ".join(filter(None, [*notes, at.unread_note])))


def _measured(arm: str, reference: str, region: str, at: CommonStep[Pair], both: list[_Both]) -> Conservation:
    """Measure the budgets, without a verdict."""
    logs = [float(np.log(one.ratio)) for one in both if one.ratio is not None]
    within, shifts = _interval(logs), [shift for one in both if (shift := one.shift) is not None]
    moved = _interval(shifts)
    sides = ([one.a for one in both], [one.b for one in both])
    budgets = [mean_of_known(float(side.budget.sum()) for side in own) for own in sides]
    chances = [
        mean_of_known(None if side.expected is None else float(side.expected.sum()) for side in own) for own in sides
    ]
    layers, centres = (
        [mean_of_known(of(side) for side in own) for own in sides]
        for of in (lambda side: side.layers, lambda side: centre(side.budget))
    )
    return Conservation(
        arm=arm, reference=reference, region=region, step=at.step, n=len(logs),
        budget_a=budgets[0], budget_b=budgets[1], expected_a=chances[0], expected_b=chances[1],
        layers_a=layers[0], layers_b=layers[1], centre_a=centres[0], centre_b=centres[1],
        centre_shift=mean_of_known(shifts), centre_low=moved.low, centre_high=moved.high, centre_p=p_two_sided(shifts),
        distance=mean_of_known(distance(one.a.budget, one.b.budget) for one in both), moved_p=_moved_p(both),
        ratios={one.seed: one.ratio for one in both}, ratio=float(np.exp(np.mean(logs))) if logs else None,
        low=None if within.low is None else float(np.exp(within.low)),
        high=None if within.high is None else float(np.exp(within.high)), method=within.method,
        p=_p(logs), verdict="not measured",
        sentence="The layers were read only before training." if at.untrained
        else "No pair has this count in both arms at one step.",
    )  # fmt: skip


def _p(logs: list[float]) -> float | None:
    """Return the p for ratios inside `CONSERVED`, or outside where their mean is outside."""
    low, high = np.log(CONSERVED).tolist()
    test = p_within if logs and low <= np.mean(logs) <= high else p_outside
    return test(logs, low, high)


def _moved_p(both: list[_Both]) -> float | None:
    """Return the p of the distance between the arms' mean budgets along depth under exchange of arms within pairs.

    Null under two pairs, or where a pair's budget is empty.
    """
    gaps = [one.gap for one in both]
    if len(both) < 2 or any(gap is None for gap in gaps):
        return None
    distances = np.abs(sign_patterns(len(both)) @ np.array(gaps)).mean(axis=1)  # [patterns]
    return float((distances >= distances[0] - 1e-12).mean())


def _interval(values: list[float]) -> Interval:
    """Return the interval as for losses, but none where all values are equal: small counts agree by chance."""
    if len(values) > 1 and np.ptp(values) == 0.0:
        return Interval(None, None, "none: all pairs are equal")
    return interval(values, 0.95)


def _judge(c: Conservation) -> tuple[str, list[str]]:
    """Return the verdict on measured budgets, and the reasons and caveats.

    If both budgets are within chance, there is no excess to judge. If only one is, it may have collapsed: the verdict
    can be "not conserved" but not "conserved". If a pair lacks a ratio, it can be neither: the others are a selection.
    """
    names = {"a": "the baseline", "b": c.arm}
    empty = [str(seed) for seed, ratio in c.ratios.items() if ratio is None]
    notes = [f"Seeds without a ratio, because a budget is no larger than chance: {', '.join(empty)}."] if empty else []
    within = _arms_within_chance(c)
    if within is None:
        return "inconclusive", ["The count by chance was not measured.", *notes]
    if len(within) == 2:
        return "no larger than chance", [f"Neither budget exceeds {CHANCE}.", *notes]
    if within:
        above = "b" if within == ["a"] else "a"
        notes.insert(0, f"The budget of {names[within[0]]} does not exceed {CHANCE}; that of {names[above]} does.")
    if c.reference == UNCLAIMED:
        return "not claimed", [*notes, "No claim rests on this threshold: it moves with the layer's own spread."]
    if empty:
        return "inconclusive", notes
    if c.ratio is None or c.low is None or c.high is None:
        return "inconclusive", [*notes, "An interval needs two pairs with a ratio." if c.n < 2 else EQUAL]
    if c.n < FEWEST_PAIRS:
        notes.append(f"A decision needs {FEWEST_PAIRS} pairs.")
    if c.p is None or c.p > ALPHA:
        return "inconclusive", notes
    if c.high < CONSERVED[0] or c.low > CONSERVED[1]:
        return "not conserved", notes
    if within or c.low < CONSERVED[0] or c.high > CONSERVED[1]:
        return "inconclusive", notes
    if c.moved_p is None or c.moved_p > ALPHA:
        return "nothing moved", [*notes, "As many positions are saturated, and none is seen to lie at another depth."]
    return "conserved", notes


def _beside_chance(c: Conservation) -> dict[str, tuple[float, float]]:
    """Return `a` and `b` → (budget, count by chance), where both are known."""
    arms = {"a": (c.budget_a, c.expected_a), "b": (c.budget_b, c.expected_b)}
    return {arm: (b, e) for arm, (b, e) in arms.items() if b is not None and e is not None}


def _arms_within_chance(c: Conservation) -> list[str] | None:
    """Return the arms, `a` and `b`, whose budget summed over the pairs is within chance; null if that is unknown.

    Chance is a Poisson count whose mean is estimated from a few drawn layers (SCIENCE §3); the quantile leaves out the
    error of that estimate.
    """
    known, n = _beside_chance(c), len(c.ratios)
    largest = {arm: scipy.stats.poisson.ppf(CHANCE_QUANTILE, n * expected) for arm, (_, expected) in known.items()}
    return [arm for arm, (budget, _) in known.items() if n * budget <= largest[arm]] if len(known) == 2 else None
