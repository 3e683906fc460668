"""Judge the lines of `expect`: whether the layers became what the experiment intended."""

from __future__ import annotations

from dataclasses import dataclass, replace

import scipy

from orchestrator.analysis.cells import CellResult, ExperimentResult
from orchestrator.analysis.common_step import CommonStep, common_step
from orchestrator.analysis.statistics import (
    interval,
    mean_of_known,
)
from orchestrator.experiments.decision import ALPHA, FEWEST_PAIRS
from orchestrator.experiments.expectations import Bounds, Wanted


@dataclass(frozen=True)
class Expectation:
    """One line of one arm, over its complete cells read at their common step; null means not known."""

    arm: str
    line: str
    role: str | None  # whose share of the line's layers is the number; null for a quantity
    wanted: str  # the line as text, such as `uniform: late specialist > 0.5`
    thresholds: list[float]  # one, or the two ends of a range
    step: int | None
    values: dict[int, float | None]  # seed → the number
    n: int  # seeds that have it
    holding: int  # of these, the seeds whose number lies inside the bounds
    mean: float | None
    low: float | None  # 95 % interval of the mean
    high: float | None
    method: str
    p: float | None  # exact two-sided sign test of the seeds inside the bounds
    untrained: float | None  # mean at step 0
    baseline: float | None  # mean of the baseline's complete cells at this step; null for the baseline itself
    verdict: str  # delivered · not delivered · inconclusive · not measured
    sentence: str  # reasons and caveats, or empty


def expectations(experiment: ExperimentResult) -> list[Expectation]:
    """Judge every line of `expect`, in order.

    Delivered: the 95 % interval of the mean lies inside the bounds, and so do significantly more than half of the seeds
    (exact sign test, which needs six seeds). Not delivered: both lie outside. A sign-flip test would not be
    exact, because shares and counts of layers are discrete and skewed.
    """
    return [_judged(wanted, _measured(wanted, experiment)) for wanted in experiment.expect]


def _measured(wanted: Wanted, experiment: ExperimentResult) -> Expectation:
    """Measure one line, without a verdict."""
    cells = [cell for cell in experiment.cells if cell.arm == wanted.arm and not cell.missing]
    at = common_step(cells)
    others = [cell for cell in experiment.cells if cell.arm == experiment.arms[0] != wanted.arm and not cell.missing]
    read = [] if at.step is None or at.untrained else at.read
    values = {cell.seed: wanted.read(cell.readings[at.step]) for cell in read if at.step is not None}
    known = [value for value in values.values() if value is not None]
    within = interval(known, 0.95)
    holding = sum(map(wanted.bounds.hold, known))
    return Expectation(
        arm=wanted.arm, line=wanted.line, role=wanted.role, wanted=str(wanted), thresholds=wanted.bounds.ends,
        step=at.step, values=values, n=len(known), holding=holding, mean=mean_of_known(known),
        low=None if within.low is None else max(within.low, 0.0),  # a t interval may exceed the range of the number
        high=None if within.high is None else min(within.high, wanted.most),
        method=within.method, p=_sign_p(max(holding, len(known) - holding), len(known)) if known else None,
        untrained=_mean(wanted, cells, 0), baseline=_mean(wanted, others, at.step),
        verdict="not measured", sentence=" ".join(filter(None, [_missing(at, known), at.stale_note, at.unread_note])),
    )  # fmt: skip


def _judged(wanted: Wanted, e: Expectation) -> Expectation:
    """Add the verdict, which is inconclusive where a seed that was read lacks the number."""
    if not e.n:
        return e
    without = [str(seed) for seed, value in e.values.items() if value is None]
    notes = [f"Seeds without this number: {', '.join(without)}."] if without else []
    verdict = "inconclusive" if without else _verdict(wanted.bounds, e)
    if e.n < FEWEST_PAIRS:
        notes.append(f"{e.n} seed{'s' * (e.n > 1)} cannot decide: the sign test needs {FEWEST_PAIRS}.")
    if verdict == "delivered" and e.untrained is not None and wanted.bounds.hold(e.untrained):
        notes.append("It already held before training.")
    return replace(e, verdict=verdict, sentence=" ".join(filter(None, [*notes, e.sentence])))


def _verdict(bounds: Bounds, e: Expectation) -> str:
    if e.low is None or e.high is None or e.p is None or e.p > ALPHA:
        return "inconclusive"
    most = 2 * e.holding > e.n
    if most and bounds.cover(e.low, e.high):
        return "delivered"
    return "not delivered" if not most and bounds.miss(e.low, e.high) else "inconclusive"


def _missing(at: CommonStep[CellResult], known: list[float]) -> str:
    """Return the reason why no seed has the number; empty where one has it."""
    if not at.read and not at.unread:
        return "No cell of this arm is complete."
    if at.step is None:
        return f"The layers of seeds {', '.join(str(cell.seed) for cell in at.unread)} were never read."
    if at.untrained:
        return "The layers were read only before training."
    if not known:
        return "No reading has this number: its measure is missing, its budget is empty, or the layers do not exist."
    return ""


def _sign_p(most: int, n: int) -> float:
    """Return twice the probability that at least `most` of `n` tossed coins show heads, at most 1."""
    return min(1.0, 2.0 * float(scipy.stats.binomtest(most, n, alternative="greater").pvalue))


def _mean(wanted: Wanted, cells: list[CellResult], step: int | None) -> float | None:
    """Return the mean over the cells that were read at `step`."""
    return mean_of_known(wanted.read(cell.readings[step]) for cell in cells if step in cell.readings)
