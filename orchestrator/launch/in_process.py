"""`launcher=debug`: one cell after another in this process."""

from __future__ import annotations

import time

import submitit
from rich.console import Console
from rich.markup import escape

from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.jobs import retry
from orchestrator.jobs.worker import CellJob
from orchestrator.launch.order import first_ready
from orchestrator.storage.event_log import EventLog


def run(experiment: Experiment, cells: list[Cell], console: Console) -> None:
    """Run the cells; a signal stops the one that runs, and leaves the rest."""
    events, limits, waiting = EventLog(experiment.directory), experiment.config.launcher, list(cells)
    while waiting:
        cell = waiting.pop(first_ready(waiting, waiting) or 0)
        console.print(f"{escape(cell.id)} starts in this process")
        executor = submitit.DebugExecutor(folder=experiment.directory / "jobs")
        state = executor.submit(CellJob(str(cell.directory))).result()
        if state == "stopped":
            break
        if state == "crashed":
            pause = retry.pause_or_give_up(events, cell.id, limits.retries, limits.backoff_seconds)
            if pause is not None:
                console.print(f"{escape(cell.id)} died and is tried again in {pause:.0f} s")
                time.sleep(pause)
                waiting.insert(0, cell)
