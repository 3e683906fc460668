"""The launcher that stays until its cells have ended: it fills the slots, and retries the cells that died."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape

from orchestrator import monitoring
from orchestrator.experiments import budget
from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.jobs import retry
from orchestrator.launch.jobs import cell_job, is_ready
from orchestrator.schedulers.scheduler import Scheduler
from orchestrator.storage import lease
from orchestrator.storage.event_log import EventLog
from orchestrator.training.loop import StopSignal

POLL_SECONDS = 0.2
STOP_SECONDS = 2.0  # between two signals to cells that are to stop


class Launcher:
    """Runs cells through a scheduler without a queue. A signal stops them, each with a checkpoint."""

    def __init__(self, scheduler: Scheduler, experiment: Experiment, cells: list[Cell], console: Console) -> None:
        self.scheduler, self.experiment, self.console = scheduler, experiment, console
        self.events = EventLog(experiment.directory)
        self.free, self.waiting = scheduler.slots(experiment.config), list(cells)
        self.running: dict[str, tuple[Cell, str | None]] = {}  # job → its cell and its slot
        self.not_before: dict[str, float] = {}  # cell → the `time.monotonic` of its next try

    def run(self) -> None:
        """Run the cells until none is left, or a signal comes."""
        directory, stop_again = self.experiment.directory, 0.0
        live = not self.scheduler.blocks
        with StopSignal() as stop, monitoring.Screen(directory, self.console, live=live) as screen:
            try:
                while self.running or (self.waiting and not stop.received):
                    while not stop.received and self.free and (cell := self._next_ready()):
                        if not self._is_affordable(cell):
                            break
                        self._start(cell)
                    if stop.received and time.monotonic() > stop_again:  # again: a starting cell may miss it
                        stop_again = time.monotonic() + STOP_SECONDS
                        self.scheduler.cancel(self.running)
                    states = self.scheduler.states(self.running)
                    for job in [job for job, state in states.items() if state.has_ended]:
                        self._end(job, stop)
                    screen.refresh()
                    time.sleep(POLL_SECONDS)
            except BaseException:  # no cell goes on without a launcher
                self.scheduler.cancel(self.running)
                raise

    def _next_ready(self) -> Cell | None:
        """The first cell that may start now."""
        now, unfinished = time.monotonic(), [*self.waiting, *(cell for cell, _ in self.running.values())]
        ready = (c for c in self.waiting if self.not_before.get(c.id, now) <= now and is_ready(c, unfinished))
        return next(ready, None)

    def _is_affordable(self, cell: Cell) -> bool:
        """True where the budget has room for the cell; where nothing runs that may turn out cheaper, end otherwise."""
        beside = [other.id for other, _ in self.running.values()]
        if not budget.refusal(self.experiment.directory, self.experiment.config.budget, [cell.id], beside):
            return True
        if not self.running:
            self.waiting.clear()
        return False

    def _start(self, cell: Cell) -> None:
        gpus = self.free[0]
        (job,) = self.scheduler.submit(self.experiment.config, [cell_job(cell, self.experiment, gpus)])
        self.running[job] = cell, self.free.pop(0)
        self.waiting.remove(cell)
        self.events.append(cell.id, "submitted", attempt=lease.next_number(cell.directory), job=job)
        if self.scheduler.blocks:
            self.console.print(f"{escape(cell.id)} starts in this process")

    def _end(self, job: str, stop: StopSignal) -> None:
        """Free the slot of a job that has ended; have its cell tried again where it died."""
        (cell, gpus), limits = self.running.pop(job), self.experiment.config.launcher
        self.free.append(gpus)
        entry = self.events.last()[cell.id]
        if entry.state in ("submitted", "running") and not lease.is_held(cell.directory):
            # stopped as it started, killed, or short of memory
            if stop.received:
                self.events.append(cell.id, "stopped", attempt=entry.attempt, job=entry.job)
                return
            reason = f"its process ended unexpectedly (killed, or out of memory; log: {self.scheduler.log_of(job)})"
            retry.record_crash(self.events, cell.id, reason, attempt=entry.attempt, job=entry.job)
        elif entry.state != "crashed" or stop.received:
            return
        pause = retry.pause_or_give_up(self.events, cell.id, limits.retries, limits.backoff_seconds)
        if pause is not None:
            self.not_before[cell.id] = time.monotonic() + pause
            self.waiting.append(cell)
