"""A launch: every unfinished cell becomes a job of the scheduler that `launcher.kind` names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from orchestrator.common.errors import UserError
from orchestrator.experiments import costs
from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.experiments.run_directory import record_launcher
from orchestrator.jobs.worker import is_finished
from orchestrator.launch import attended, queued
from orchestrator.schedulers import chosen
from orchestrator.storage import locks
from orchestrator.storage.event_log import EventLog


def launch(
    experiment: Experiment, console: Console, only: Collection[str] | None = None, cancel: Collection[str] = ()
) -> list[Cell]:
    """Run every unfinished cell, or submit it to the scheduler's queue; return the cells that were launched.

    `only`: the cells that may be launched; None: all. `cancel`: cells whose jobs are cancelled first; any other cell
    that a queue already has is left to it. SIGINT or SIGTERM stops every cell that runs on this machine at its next
    step boundary, with a checkpoint. Raises `UserError` where another launcher holds the experiment.
    """
    with alone(experiment.directory):
        events = EventLog(experiment.directory)
        cancelled = [entry.job for cell, entry in events.open().items() if cell in cancel]
        if cancelled:
            queued.cancel(experiment.directory, cancelled)
            console.print(f"Cancelled {', '.join(cancelled)}, which had these cells.", markup=False, soft_wrap=True)
        unfinished = [cell for cell in experiment.cells if not is_finished(cell.directory)]
        still = queued.still_queued(experiment, unfinished)
        taken = {cell: entry.job for cell, entry in still.items() if entry.job not in cancelled}
        selected = [cell for cell in unfinished if cell.id not in taken and (only is None or cell.id in only)]
        if left := [f"{cell} (job {job})" for cell, job in taken.items() if only is None or cell in only]:
            queues = queued.title((still[cell] for cell in taken), experiment.directory)
            console.print(f"{queues} already has {', '.join(map(escape, left))}.")
        if costs.Cost().shares(experiment.config.budget):  # lest one that runs out leaves no pairs
            seeds = [cell.config.seed for cell in selected]
            selected.sort(key=lambda cell: seeds.index(cell.config.seed))
        if selected:
            record_launcher(experiment)
            scheduler = chosen(experiment.config)(experiment.directory)
            if scheduler.queues:
                queued.submit(experiment, selected, console, beside=taken)
            else:
                attended.Launcher(scheduler, experiment, selected, console).run()
        elif taken and chosen(experiment.config).queues:
            queued.submit_finalize(experiment, taken.values())
        return selected


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the launcher's lock during the block. Raises `UserError` where another launcher holds it."""
    with locks.hold(locks.of_launcher(directory), wait=False) as free:
        if not free:
            raise UserError(
                f"{directory} is being run by another process: wait for it, or follow it with "
                f"python -m orchestrator.status {directory}."
            )
        yield
