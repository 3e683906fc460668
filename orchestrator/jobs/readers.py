"""The readers of a cell's checkpoints: a thread of the training process, a process beside it, or jobs of a queue."""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Where
from orchestrator.experiments.readings import Readings
from orchestrator.schedulers import chosen
from orchestrator.schedulers.local import Local
from orchestrator.schedulers.scheduler import Job, NoAnswer, Phase, Resources
from orchestrator.training.callbacks import Reader

JOIN_SECONDS = 2.0  # longest wait of a cell that has ended for a submission under way

log = logging.getLogger(__name__)


class InThread:
    """Reads in one thread of this process. It changes no global state of torch, so that training is unaffected."""

    def __init__(self, readings: Readings) -> None:
        self.readings, self.pool = readings, ThreadPoolExecutor(max_workers=1)
        self.asked: deque[Future[bool]] = deque()
        self.ending = threading.Event()

    def add(self, path: Path) -> None:
        self.asked.append(self.pool.submit(self.readings.read, path, self.ending.is_set))

    def take_part(self) -> None:
        """Nothing to do: this thread makes all readings."""

    def is_busy(self) -> bool:
        while self.asked and self.asked[0].done():
            self.asked.popleft().result()
        return bool(self.asked)

    def close(self) -> None:
        self.ending.set()
        self.pool.shutdown(cancel_futures=True)


class Beside(InThread):
    """Reads in jobs beside the training process, which itself reads only what they leave after its last step.

    The death of such a job does not stop training.
    """

    def __init__(self, readings: Readings) -> None:
        super().__init__(readings)
        self.takes_part = False

    def job_of(self, *options: str) -> Job:
        """A job that reads the cell's checkpoints."""
        arguments = (str(self.readings.cell_dir.resolve()), *options)
        name = f"{self.readings.config.name}-readings"
        return Job("orchestrator.jobs.read_checkpoints", arguments, name, Resources.background)

    def take_part(self) -> None:
        """Read in this process what is left, beside the jobs, so that all is read whatever becomes of them."""
        if not self.takes_part:
            self.takes_part = True
            for path in self.readings.wanted():
                super().add(path)


class BesideProcess(Beside):
    """One process of this machine, which looks on disk for checkpoints to read, and ends with the cell."""

    def __init__(self, readings: Readings) -> None:
        super().__init__(readings)
        self.scheduler = Local(readings.cell_dir.parents[1])
        (self.job,) = self.scheduler.submit(readings.config, [self.job_of("--watch")])

    def add(self, path: Path) -> None:
        """Nothing to do: the process finds it on disk."""


class BesideQueue(Beside):
    """Jobs of low priority, each of which reads the checkpoints that exist when it begins; at most one waits.

    A thread submits them, since the scheduler may be slow to answer and no rank should wait for it.
    """

    def __init__(self, readings: Readings) -> None:
        super().__init__(readings)
        self.job: str | None = None
        self.wanted, self.closing = threading.Event(), False
        self.thread = threading.Thread(target=self._serve, name="readings", daemon=True)  # dies with the cell
        self.thread.start()

    def add(self, path: Path) -> None:
        """Have a job submitted unless one is waiting. Checkpoints that no job reads, the cell reads at its end."""
        self.wanted.set()

    def close(self) -> None:
        """Finish the reading in progress, and a submission that is under way."""
        super().close()
        self.closing = True
        self.wanted.set()
        self.thread.join(JOIN_SECONDS)

    def _serve(self) -> None:
        while self.wanted.wait() and not self.closing:
            self.wanted.clear()  # before the submission, since the job may miss what is added from now on
            self._submit()

    def _submit(self) -> None:
        config = self.readings.config
        scheduler = chosen(config)(self.readings.cell_dir.parents[1])
        with suppress(NoAnswer):
            if self.job and any(state.phase == Phase.waiting for state in scheduler.states([self.job]).values()):
                return
        try:
            (self.job,) = scheduler.submit(config, [self.job_of()])
        except (UserError, RuntimeError, OSError) as error:
            log.warning("Readings of %s are left for the end of the cell: %s", self.readings.cell_dir, error)


def reader_for(readings: Readings) -> Reader:
    """Start and return the reader of a cell.

    `forensics.where=inline` reads in a thread; `job` reads in jobs of the queue that `launcher.kind` names, or in a
    process of this machine where that has no queue.
    """
    if readings.config.forensics.where == Where.inline:
        return InThread(readings)
    return (BesideQueue if chosen(readings.config).queues else BesideProcess)(readings)
