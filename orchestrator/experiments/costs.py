"""The hours that an experiment has taken, from its event log: every attempt of every cell counts, and its search's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.config.schema import BudgetConfig
from orchestrator.experiments.trials import FOLDER
from orchestrator.storage import lease
from orchestrator.storage.event_log import COMPARISON, EventLog
from orchestrator.storage.metrics_log import Record

HOUR = 3600.0
ENDED = ("done", "stopped", "failed", "preempted")  # recorded by the attempt itself, as it ends


@dataclass(frozen=True)
class Cost:
    """Hours of the devices that cells occupied: of GPUs, or of CPU cores where they used none."""

    core_hours: float = 0.0
    gpu_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.core_hours + other.core_hours, self.gpu_hours + other.gpu_hours)

    def times(self, factor: float) -> Cost:
        return Cost(self.core_hours * factor, self.gpu_hours * factor)

    def money(self, price: float) -> float:
        """The price of it; `price`: of an hour of a GPU, and of a core of cells that used none."""
        return price * (self.gpu_hours + self.core_hours)

    def shares(self, budget: BudgetConfig) -> dict[str, tuple[float, float]]:
        """Key of a cap that `budget` sets → what this takes of it, and the cap."""
        taken = {
            "core_hours": self.core_hours,
            "gpu_hours": self.gpu_hours,
            "money": self.money(budget.price or 0.0),
        }
        caps = {key: getattr(budget, key) for key in taken}
        return {key: (taken[key], cap) for key, cap in caps.items() if cap is not None}


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of `costs`."""
    return sum(costs, Cost())


def of_cells(experiment_dir: Path) -> dict[str, Cost]:
    """Cell → the cost of all its attempts so far, of those cells that have begun."""
    found: dict[str, Cost] = {}
    begun: dict[str, Record] = {}  # cell → the event with which its newest attempt began
    for event in EventLog(experiment_dir).events():
        cell = event["cell"]
        if cell == COMPARISON:
            continue
        if (start := begun.pop(cell, None)) is not None:
            found[cell] = found.get(cell, Cost()) + _between(start, event, experiment_dir / cell)
        if event["state"] == "running":
            begun[cell] = event
    for cell, start in begun.items():
        found[cell] = found.get(cell, Cost()) + _between(start, None, experiment_dir / cell)
    return found


def of_search(experiment_dir: Path) -> Cost:
    """The cost of the search from which the experiment's arms come."""
    explored = (path.parent for path in sorted((experiment_dir / FOLDER).glob("*/events.jsonl")))
    return total(cost for directory in explored for cost in of_cells(directory).values())


def of_experiment(experiment_dir: Path) -> Cost:
    """The cost of all cells, and of the search."""
    return total(of_cells(experiment_dir).values()) + of_search(experiment_dir)


def _between(start: Record, end: Record | None, cell_dir: Path) -> Cost:
    """The cost of an attempt; `end`: the next event of the cell, null where the attempt may still run."""
    began, ended = _seconds(start), _seconds(end)
    if end is None or end["state"] not in ENDED:  # it runs, or it died: until its last heartbeat
        beat = lease.heartbeat_of(cell_dir, start["attempt"]) or None
        ended = min(filter(None, (ended, beat)), default=None)
    if began is None or ended is None:
        return Cost()
    recorded = start.get("environment")
    where = recorded if isinstance(recorded, dict) else {}
    hours = max(0.0, ended - began) / HOUR * _count(where.get("ranks"))
    return Cost(gpu_hours=hours) if where.get("cuda") else Cost(core_hours=hours * _count(where.get("threads")))


def _count(recorded: Any) -> int:
    return recorded if isinstance(recorded, int) else 1  # not recorded by an older version


def _seconds(event: Record | None) -> float | None:
    """The time of an event, seconds since the epoch; null where it has none that can be read."""
    try:
        return datetime.fromisoformat(event["time"]).timestamp() if event else None
    except ValueError:
        return None
