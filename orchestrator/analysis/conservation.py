"""Judge whether an arm conserves the baseline's specialist budget (SCIENCE §4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.common_step import common_step_of_pairs
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.statistics import Interval, interval, mean_of_known, sign_flip_p
from orchestrator.forensics.reading import centre, depths, profile, thirds, total

THRESHOLDS = {"saturated_robust": "robust", "saturated_fixed": "fixed", "saturated": "mean + 3 std"}
REFERENCES = tuple(THRESHOLDS)  # claims rest on the first
UNCLAIMED = "saturated"  # its threshold moves with the layer's own spread (SCIENCE §1)
CONSERVED = (0.80, 1.25)  # the 90 % interval of the ratio must lie inside
CHANCE_QUANTILE = 0.975  # of a Poisson count at the expected number: a budget up to it is no larger than chance
EQUAL = "All seeds have the same ratio, which gives no interval."
CHANCE = f"chance ({100 * CHANCE_QUANTILE:g} % Poisson quantile at the drawn layers' mean count)"


@dataclass(frozen=True)
class Conservation:
    """The budgets of the baseline (a) and of `arm` (b) at their common step; null means not known."""

    arm: str
    reference: str
    step: int | None  # of the readings
    n: int  # pairs with a ratio
    budget_a: float | None  # mean over pairs, saturated positions of the whole stack
    budget_b: float | None
    expected_a: float | None  # mean over pairs, by chance
    expected_b: float | None
    centre_a: float | None  # mean over pairs, 0 (first layer) … 1 (last)
    centre_b: float | None
    centre_shift: float | None  # mean of centre b − centre a over the pairs in which both have one
    centre_low: float | None  # its 95 % interval
    centre_high: float | None
    centre_p: float | None  # two-sided sign-flip, exact up to 16 pairs
    distance: float | None  # mean over pairs, Wasserstein-1 along depth 0…1
    ratios: dict[int, float | None]  # seed → budget_b / budget_a
    ratio: float | None  # geometric mean
    low: float | None  # 90 % interval
    high: float | None
    method: str
    chance_ratio: float | None  # expected_b / expected_a
    verdict: str  # conserved · not conserved · inconclusive · no larger than chance · not claimed · not measured
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


class _PairBudgets(NamedTuple):
    """The budgets of one pair at one step."""

    seed: int
    a: np.ndarray  # [L_a]
    b: np.ndarray  # [L_b]
    expected_a: float | None
    expected_b: float | None

    @property
    def ratio(self) -> float | None:
        return float(self.b.sum() / self.a.sum()) if self.a.sum() > 0.0 and self.b.sum() > 0.0 else None

    @property
    def shift(self) -> float | None:
        """Centre of b minus centre of a, as a share of the depth; null where either budget is empty."""
        a, b = centre(self.a), centre(self.b)
        return None if a is None or b is None else b - a


def _pair_budgets(pair: Pair, step: int, reference: str) -> _PairBudgets | None:
    """Return both budgets over the threshold `reference`; None where a cell lacks that count."""
    a, b = (cell.readings[step] for cell in pair.cells)
    x, y = profile(a, reference), profile(b, reference)
    if x is None or y is None:
        return None
    return _PairBudgets(pair.seed, x, y, *(total(reading, f"{reference}_expected") for reading in (a, b)))


def conserve(arm: str, pairs: list[Pair], reference: str) -> Conservation:
    """Judge whether `arm` conserves the baseline's budget, over its complete pairs read at their common step."""
    at = common_step_of_pairs(arm, pairs)
    read = [] if at.step is None or at.untrained else [(p.seed, _pair_budgets(p, at.step, reference)) for p in at.read]
    spent = [s for _, s in read if s is not None]
    logs = [np.log(s.ratio) for s in spent if s.ratio is not None]
    within = _interval(logs, 0.90)
    shifts = [shift for s in spent if (shift := s.shift) is not None]
    moved = _interval(shifts, 0.95)
    expected_a, expected_b = mean_of_known(s.expected_a for s in spent), mean_of_known(s.expected_b for s in spent)
    found = Conservation(
        arm=arm, reference=reference, step=at.step, n=len(logs),
        budget_a=mean_of_known(s.a.sum() for s in spent), budget_b=mean_of_known(s.b.sum() for s in spent),
        expected_a=expected_a, expected_b=expected_b,
        centre_a=mean_of_known(centre(s.a) for s in spent), centre_b=mean_of_known(centre(s.b) for s in spent),
        centre_shift=mean_of_known(shifts), centre_low=moved.low, centre_high=moved.high, centre_p=sign_flip_p(shifts),
        distance=mean_of_known(distance(s.a, s.b) for s in spent), ratios={s.seed: s.ratio for s in spent},
        ratio=float(np.exp(np.mean(logs))) if logs else None,
        low=None if within.low is None else float(np.exp(within.low)),
        high=None if within.high is None else float(np.exp(within.high)), method=within.method,
        chance_ratio=expected_b / expected_a if expected_a and expected_b is not None else None,
        verdict="not measured",
        sentence="The layers were read only before training." if at.untrained
        else "No pair has this count in both arms at one step.",
    )  # fmt: skip
    if not spent:
        return found
    verdict, notes = _judge(found)
    if uncounted := [str(seed) for seed, s in read if s is None]:
        notes.append(f"Seeds left out because they lack this count: {', '.join(uncounted)}.")
    return replace(found, verdict=verdict, sentence=" ".join(filter(None, [*notes, at.unread_note])))


def _interval(values: list[float], level: float) -> Interval:
    """Return the interval as for losses, but none where all values are equal: small counts agree by chance."""
    if len(values) > 1 and np.ptp(values) == 0.0:
        return Interval(None, None, "none: all pairs are equal")
    return interval(values, level)


def _judge(c: Conservation) -> tuple[str, list[str]]:
    """Return the verdict on measured budgets, and the reasons and caveats.

    If both budgets are within chance, there is no ratio to judge. If only one is, it may have collapsed: the verdict
    can be "not conserved" but not "conserved". If a pair lacks a ratio, it can be neither: the others are a selection.
    """
    names = {"a": "the baseline", "b": c.arm}
    empty = [str(seed) for seed, ratio in c.ratios.items() if ratio is None]
    notes = [f"Seeds without a ratio, because a budget is 0: {', '.join(empty)}."] if empty else []
    within = _arms_within_chance(c)
    if within is None:
        notes.append("The count by chance was not measured.")
    elif len(within) == 2:
        return "no larger than chance", [f"Neither budget exceeds {CHANCE}.", *notes]
    elif within:
        above = "b" if within == ["a"] else "a"
        notes.insert(0, f"The budget of {names[within[0]]} does not exceed {CHANCE}; that of {names[above]} does.")
    if c.reference == UNCLAIMED:
        return "not claimed", [*notes, "No claim rests on this threshold: it moves with the layer's own spread."]
    if empty:
        return "inconclusive", notes
    if c.low is None or c.high is None:
        return "inconclusive", [*notes, "An interval needs two pairs with a ratio." if c.n < 2 else EQUAL]
    if c.high < CONSERVED[0] or c.low > CONSERVED[1]:
        if c.chance_ratio is None or CONSERVED[0] <= c.chance_ratio <= CONSERVED[1]:
            return "not conserved", notes
        return "inconclusive", [*notes, "The arms' counts by chance alone differ as much."]
    if c.low < CONSERVED[0] or c.high > CONSERVED[1] or within:
        return "inconclusive", notes
    if mostly := [names[arm] for arm, (budget, expected) in _beside_chance(c).items() if expected > budget / 2.0]:
        return "inconclusive", [*notes, f"Chance gives more than half of the budget of {' and of '.join(mostly)}."]
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
