"""The budget of an experiment: a cell starts only where it fits, as far as finished cells tell what one takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.common.formatting import figures
from orchestrator.config import load
from orchestrator.config.schema import BudgetConfig
from orchestrator.experiments import costs
from orchestrator.experiments.costs import Cost
from orchestrator.experiments.trials import FOLDER, is_explored
from orchestrator.storage import metrics_log
from orchestrator.storage.event_log import EventLog

UNITS = {"core_hours": "core-hours", "gpu_hours": "GPU-hours", "money": "of it"}


@dataclass(frozen=True)
class Finished:
    """A cell that is done."""

    arm: str
    cost: Cost
    steps: int
    own: bool  # of the directory that is asked about, not of another one of its search


def refusal(
    experiment_dir: Path, budget: BudgetConfig, cells: Collection[str], beside: Collection[str] = ()
) -> str | None:
    """One sentence where `cells` (`<arm>/seed=<k>`) cannot all start within `budget`; None where they can.

    Counts what the experiment and its search took, and what `cells`, those that run and those `beside` will still take:
    as much for each step as the finished cells of the same arm did, else those of the experiment, else the search's.
    Before any cell is finished, one starts only with none beside it.
    """
    if not Cost().shares(budget):
        return None
    whole = experiment_dir.parents[1] if is_explored(experiment_dir) else experiment_dir
    taken, last = costs.of_cells(experiment_dir), EventLog(experiment_dir).last()
    finished = [*_finished(experiment_dir, own=True), *_elsewhere(whole, experiment_dir)]
    running = {cell for cell in taken if last[cell].state == "running"}.union(beside).difference(cells)
    spent = costs.of_experiment(whole)
    following = costs.total(_left(experiment_dir, cell, taken, finished) for cell in (*running, *cells))
    for key, (needed, cap) in (spent + following).shares(budget).items():
        already = spent.shares(budget)[key][0]
        if needed > cap or already >= cap or (beside and not finished):
            sentence = f"budget.{key}={cap:g} starts no more cells: {figures(already)} {UNITS[key]} are spent"
            if (more := needed - already) > 0:
                sentence += f", and about {figures(more)} more would follow{' with what runs' * bool(running)}"
            return f"{sentence}. Raise it and repeat the command to go on."
    return None


def _elsewhere(whole: Path, experiment_dir: Path) -> list[Finished]:
    """The finished cells of the search, but for those of `experiment_dir`."""
    others = [path.parent for path in sorted((whole / FOLDER).glob("*/events.jsonl")) if path.parent != experiment_dir]
    return [cell for directory in others for cell in _finished(directory, own=False)]


def _finished(directory: Path, *, own: bool) -> list[Finished]:
    """The finished cells of one directory."""
    last = EventLog(directory).last()
    return [
        Finished(cell.partition("/")[0], cost, steps, own)
        for cell, cost in costs.of_cells(directory).items()
        if last[cell].state == "done" and (steps := metrics_log.trained_to(directory / cell / "metrics.jsonl"))
    ]


def _left(directory: Path, cell: str, taken: dict[str, Cost], finished: list[Finished]) -> Cost:
    """The cost that is left until the cell is finished; nothing where no cell is finished yet."""
    arm, here = cell.partition("/")[0], [one for one in finished if one.own]
    known = [one for one in here if one.arm == arm] or here or finished
    if not known:
        return Cost()
    path = directory / cell / "config.yaml"
    steps = load.from_file(path).train.steps if path.is_file() else max(one.steps for one in known)
    mean = costs.total(one.cost.times(steps / one.steps) for one in known).times(1.0 / len(known))
    begun = taken.get(cell, Cost())
    return Cost(max(0.0, mean.core_hours - begun.core_hours), max(0.0, mean.gpu_hours - begun.gpu_hours))
