"""`launcher=local`: each cell a process of this machine."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from orchestrator import monitoring
from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.jobs import retry
from orchestrator.jobs.worker import CellJob
from orchestrator.launch.order import is_ready
from orchestrator.schedulers import submission
from orchestrator.storage import lease
from orchestrator.storage.event_log import EventLog
from orchestrator.training.loop import StopSignal

POLL_SECONDS = 0.2
ASK_SECONDS = 2.0


@dataclass(frozen=True)
class Running:
    """A cell's process."""

    cell: Cell
    job: Any  # submitit's
    gpu: str | None

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(int(self.job.job_id), signal.SIGTERM)  # a local job's id is its controller, which tells the cell


def run(experiment: Experiment, cells: list[Cell], console: Console) -> None:
    """Run the cells, as many at once as there are slots, and again those that died, until none is left."""
    from orchestrator.launch import slots

    events, limits = EventLog(experiment.directory), experiment.config.launcher
    free, waiting, running = slots(experiment.config), list(cells), list[Running]()
    not_before: dict[str, float] = {}  # cell → when it may be tried again, on the clock of `time.monotonic`
    asked_to_stop, ask_again = False, 0.0
    with StopSignal() as stop, monitoring.Screen(experiment.directory, console) as screen:
        while running or (waiting and not stop.received):
            while waiting and free and not stop.received:
                unfinished = [*waiting, *(one.cell for one in running)]
                now = time.monotonic()
                ready = (c for c in waiting if not_before.get(c.id, now) <= now and is_ready(c, unfinished))
                cell = next(ready, None)
                if cell is None:
                    break
                waiting.remove(cell)
                running.append(_start(experiment, cell, free.pop(0), events))
            if stop.received and time.monotonic() > ask_again:  # again, for one that starts may not have heard
                asked_to_stop, ask_again = True, time.monotonic() + ASK_SECONDS
                for one in running:
                    one.stop()
            for one in [one for one in running if one.job.done()]:
                running.remove(one)
                free.append(one.gpu)
                _record_silent_end(one, events, asked_to_stop)
                if not asked_to_stop and events.last()[one.cell.id].state == "crashed":
                    pause = retry.pause_or_give_up(events, one.cell.id, limits.retries, limits.backoff_seconds)
                    if pause is not None:
                        not_before[one.cell.id] = time.monotonic() + pause
                        waiting.append(one.cell)
            try:
                screen.refresh()
            except BaseException:  # whoever looked is gone, say: nothing is left running that nobody tends
                for one in running:
                    one.stop()
                raise
            time.sleep(POLL_SECONDS)


def _start(experiment: Experiment, cell: Cell, gpu: str | None, events: EventLog) -> Running:
    threads = str(cell.config.train.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, TOKENIZERS_PARALLELISM="false")
    executor = submission.local(
        experiment.config, experiment.directory / "jobs", tasks=experiment.config.launcher.ranks
    )
    (job,) = submission.submit(executor, CellJob(str(cell.directory), gpu))
    events.append(cell.id, "submitted", attempt=lease.next_number(cell.directory), job=job.job_id)
    return Running(cell, job, gpu)


def _record_silent_end(one: Running, events: EventLog, asked_to_stop: bool) -> None:
    """A process that ended without leaving an outcome was stopped as it started, killed, or short of memory."""
    entry = events.last()[one.cell.id]
    if entry.state not in ("submitted", "running") or lease.is_held(one.cell.directory):
        return  # it said how it ended, or another process has the cell
    if asked_to_stop:
        events.append(one.cell.id, "stopped", attempt=entry.attempt, job=entry.job)
    else:
        reason = f"its process ended without a word (killed, or out of memory; log: {one.job.paths.stderr})"
        retry.died(events, one.cell.id, reason, attempt=entry.attempt, job=entry.job)
