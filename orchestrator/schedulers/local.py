"""`launcher=local`: processes of this machine, which submitit starts."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import submitit

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.schedulers.environment import changed
from orchestrator.schedulers.scheduler import Job, JobState, Phase, Resources, Scheduler, ThisJob


class Local(Scheduler):
    """Starts processes; a job's id is that of the controlling process, which passes signals on to the ranks."""

    name, title, ranks = "local", "this machine", True

    def __init__(self, experiment_dir: Path) -> None:
        super().__init__(experiment_dir)
        self.jobs: dict[str, submitit.Job[Any]] = {}

    def submit(
        self, config: Config, jobs: Sequence[Job], *, after: Collection[str] = (), delay: float = 0.0
    ) -> Iterator[str]:
        for job in jobs:
            tasks = config.launcher.ranks if job.resources == Resources.cell else 1
            try:
                executor = submitit.LocalExecutor(folder=self.folder)
                executor.update_parameters(timeout_min=60 * config.launcher.timeout_hours, tasks_per_node=tasks)
                with changed(self.environment(job)), _signals_ignored():
                    started = executor.submit(job)
            except OSError as error:
                raise UserError(f"{self.folder} cannot take a job ({error}): make room or make it writable.") from error
            self.jobs[started.job_id] = started
            yield started.job_id

    def states(self, ids: Collection[str]) -> dict[str, JobState]:
        known = {id: self.jobs[id] for id in ids if id in self.jobs}
        return {id: JobState(Phase.ended if job.done() else Phase.running) for id, job in known.items()}

    def cancel(self, ids: Collection[str]) -> None:
        for id in ids:
            with suppress(ProcessLookupError):
                os.kill(int(id), signal.SIGTERM)

    def this_job(self) -> ThisJob | None:
        return ThisJob(submitit.JobEnvironment().job_id) if super().this_job() else None


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Processes started in the block ignore SIGINT, SIGUSR2 and SIGHUP.

    submitit's controller would end its tasks a second after Ctrl-C, which reaches the whole process group, and would
    die of a cluster's warning or of the end of the terminal, which reach every process. The launcher handles all three,
    and the tasks all but the last.
    """
    of_main = threading.current_thread() is threading.main_thread()
    previous = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP) if of_main}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
