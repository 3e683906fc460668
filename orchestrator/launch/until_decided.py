"""Seeds until decided: after each comparison, either more pairs, or the reason why there are none (SCIENCE §8)."""

from __future__ import annotations

from itertools import count, islice

import numpy as np

from orchestrator.analysis import Comparison
from orchestrator.analysis.outlook import power
from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted
from orchestrator.experiments import budget
from orchestrator.experiments.decision import ALPHA
from orchestrator.experiments.experiment import Experiment
from orchestrator.experiments.run_directory import add_seeds, record_look
from orchestrator.launch import checks

FUTILE = 0.05  # chance of a decision at decide.max below which no more pairs are added
FEWEST_TO_JUDGE = 3  # pairs whose spread that chance rests on


def next_pairs(experiment: Experiment, comparison: Comparison) -> tuple[Experiment | None, str]:
    """The experiment with the seeds that it needs next, or None; and a sentence with the reason.

    The sentence is empty where the seeds were given as a list. Records the look, and writes the new cells unless one of
    them would end at its start.
    """
    if not experiment.auto:
        return None, ""
    decide, seeds = experiment.config.decide, list(experiment.config.seeds)
    record_look(experiment.directory, decide.max, {arm: comparison.seeds_of(arm) for arm in comparison.compared})
    pairs = _complete_pairs(comparison)
    if not comparison.open_arms:
        return None, f"Decided with {pairs}."
    if len(seeds) >= decide.max:
        return None, f"Not decided with {pairs}: a larger decide.max than {decide.max} goes on from here."
    if all(_is_futile(comparison, arm, decide.max) for arm in comparison.open_arms):
        reason = f"Not decided with {pairs}, and hardly with decide.max={decide.max}"
        return None, f"{reason}: a larger one goes on from here."
    added = list(islice((seed for seed in count() if seed not in seeds), min(decide.step, decide.max - len(seeds))))
    names = f"seed{'s' * (len(added) > 1)} {', '.join(map(str, added))}"
    grown = experiment.with_seeds([*seeds, *added])
    new = [cell.id for cell in grown.cells if cell.config.seed in added]
    if refused := budget.refusal(experiment.directory, experiment.config.budget, new):
        return None, f"Not decided with {pairs}: {refused}"
    try:
        checks.check(grown)
    except UserError as error:
        return None, f"Not decided with {pairs}, and {names} cannot follow: {error}"
    return add_seeds(experiment, [*seeds, *added]), f"Not decided with {pairs}: {names} of every arm follow."


def _complete_pairs(comparison: Comparison) -> str:
    """The number of complete pairs as text, such as `7 pairs`; where arms differ in it, `6 to 7 pairs`."""
    numbers = sorted({len(comparison.seeds_of(arm)) for arm in comparison.experiment.arms[1:]})
    least = f"{numbers[0]} to " * (len(numbers) > 1)
    return f"{least}{counted(numbers[-1], 'pair')}"


def _is_futile(comparison: Comparison, arm: str, most: int) -> bool:
    """True where `most` pairs hardly decide if the differences go on as they are; it binds nobody."""
    r = comparison.primary.get(arm)
    if r is None or r.n < FEWEST_TO_JUDGE:
        return False
    std = float(np.std(comparison.deltas_of(arm), ddof=1))
    error, band = ALPHA / len(comparison.compared), (-r.margin, r.margin)
    return power(r.delta, std, most, outside=(0.0, 0.0), within=band, error=error) < FUTILE
