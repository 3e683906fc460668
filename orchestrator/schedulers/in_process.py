"""`launcher=debug`: one job after another in the launcher's own process."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from orchestrator.common.errors import INTERRUPTED
from orchestrator.config.schema import Config
from orchestrator.schedulers.environment import changed
from orchestrator.schedulers.scheduler import STARTED_BY, Job, JobState, Phase, Scheduler


class InProcess(Scheduler):
    """Runs a job when its state is asked for, and returns when it has ended."""

    name, title, blocks = "debug", "this process", True

    def __init__(self, experiment_dir: Path) -> None:
        super().__init__(experiment_dir)
        self.waiting: dict[str, Job] = {}

    def submit(
        self, config: Config, jobs: Sequence[Job], *, after: Collection[str] = (), delay: float = 0.0
    ) -> Iterator[str]:
        for job in jobs:
            self.waiting[id := str(os.getpid())] = job
            yield id

    def states(self, ids: Collection[str]) -> dict[str, JobState]:
        for id in ids:
            if job := self.waiting.pop(id, None):
                with changed({**os.environ, STARTED_BY: self.name}):
                    code = job.run()
                if code == INTERRUPTED:
                    signal.raise_signal(signal.SIGINT)  # the signal that stopped the job was for the launcher as well
        return {id: JobState(Phase.ended) for id in ids}

    def cancel(self, ids: Collection[str]) -> None:
        for id in ids:
            self.waiting.pop(id, None)

    @staticmethod
    def slots(config: Config) -> list[str | None]:
        return [None]
