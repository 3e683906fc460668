"""The budget of an experiment: a cell starts only where it fits, as far as finished cells tell what one takes."""

from __future__ import annotations

from pathlib import Path

from orchestrator.common.formatting import figures
from orchestrator.config.schema import BudgetConfig
from orchestrator.experiments import costs
from orchestrator.experiments.costs import Cost
from orchestrator.experiments.trials import is_explored
from orchestrator.storage.event_log import EventLog

UNITS = {"core_hours": "core-hours", "gpu_hours": "GPU-hours", "money": "money"}


def refusal(experiment_dir: Path, budget: BudgetConfig, cells: list[str]) -> str | None:
    """One sentence where `cells` (`<arm>/seed=<k>`) cannot all start within `budget`; None where they can.

    Counted are all cells of the experiment and of its search, what those that run are expected to take still, and what
    `cells` are: as much as the finished cells of the same arm, else of any arm, took on average.
    """
    if not Cost().shares(budget):
        return None
    whole = experiment_dir.parents[1] if is_explored(experiment_dir) else experiment_dir
    taken, last = costs.of_cells(experiment_dir), EventLog(experiment_dir).last()
    finished = {cell: cost for cell, cost in taken.items() if last[cell].state == "done"}
    running = [cell for cell in taken if last[cell].state == "running" and cell not in cells]
    spent = costs.of_experiment(whole)
    asked = costs.total([_left(cell, taken, finished) for cell in cells])
    promised = costs.total([_left(cell, taken, finished) for cell in running])
    for key, (needed, cap) in (spent + promised + asked).shares(budget).items():
        already = spent.shares(budget)[key][0]
        if needed > cap or already >= cap:
            sentence = f"budget.{key}={cap:g} starts no more cells: {figures(already)} {UNITS[key]} are spent"
            if (more := needed - already) > 0:
                sentence += f", and about {figures(more)} more would follow{' with what runs' * bool(running)}"
            return f"{sentence}. Raise it and repeat the command to go on."
    return None


def _left(cell: str, taken: dict[str, Cost], finished: dict[str, Cost]) -> Cost:
    """The cost that is left until the cell is finished; nothing where no cell is finished yet."""
    own = [cost for other, cost in finished.items() if other.partition("/")[0] == cell.partition("/")[0]]
    if not (known := own or list(finished.values())):
        return Cost()
    mean, begun = costs.total(known).times(1.0 / len(known)), taken.get(cell, Cost())
    return Cost(max(0.0, mean.core_hours - begun.core_hours), max(0.0, mean.gpu_hours - begun.gpu_hours))
