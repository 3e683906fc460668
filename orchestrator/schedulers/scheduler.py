"""What the house asks of whatever starts its jobs, with defaults for a scheduler that offers little.

A new scheduler is a subclass in a file of its own, a line in `SCHEDULERS`, and a YAML in conf/launcher. It must submit
jobs, tell their states and cancel them.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from orchestrator.common.errors import UserError
from orchestrator.schedulers.environment import outside_environment
from orchestrator.schedulers.slots import machine_slots

if TYPE_CHECKING:  # hydra takes a while to import
    from orchestrator.config.schema import Config

STARTED_BY = "ORCHESTRATOR_SCHEDULER"  # the environment variable of a job that names the scheduler that started it


class Resources(StrEnum):
    """What a job needs."""

    cell = "cell"  # `launcher.ranks` processes, each with its GPU and `train.threads` cores
    side = "side"  # one process and no GPU: the comparison
    background = "background"  # the same, after everything else: readings


@dataclass(frozen=True)
class Job:
    """What is submitted: `python -m MODULE ARGUMENTS`, where the module has `main(arguments) -> exit code`."""

    module: str
    arguments: tuple[str, ...]
    name: str  # as the scheduler lists it
    resources: Resources = Resources.side
    environment: Mapping[str, str] = field(default_factory=dict)  # beside that of the launcher
    on_failure: tuple[str, ...] = ()  # a command that a queued job runs, with its exit code added, when that is not 0

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments]

    def run(self) -> int:
        """Run the job in this process; its exit code."""
        code: int = import_module(self.module).main(list(self.arguments))
        return code


class Phase(StrEnum):
    """Where a submitted job is."""

    waiting = "waiting"
    running = "running"
    suspended = "suspended"  # its processes are frozen, and will be let go on
    ending = "ending"  # its processes may still run for a moment
    ended = "ended"
    cancelled = "cancelled"  # ended, because somebody wanted it


@dataclass(frozen=True)
class JobState:
    """One job, or one task of an array, as its scheduler knows it."""

    phase: Phase
    word: str = ""  # the scheduler's own, such as OUT_OF_MEMORY
    reason: str = ""  # why it waits

    @property
    def has_processes(self) -> bool:
        return self.phase in (Phase.running, Phase.suspended, Phase.ending)

    @property
    def has_ended(self) -> bool:
        return self.phase in (Phase.ended, Phase.cancelled)


@dataclass(frozen=True)
class ThisJob:
    """The job that this process is a part of."""

    id: str
    restart: int = 0  # how often its scheduler had started it before


class Ending(StrEnum):
    """How a scheduler is ending a job by itself."""

    requeued = "requeued"  # it will start the job again
    cancelled = "cancelled"  # for good


class NoAnswer(UserError):
    """The scheduler does not answer: what it has may run or wait, or may be gone."""


class Scheduler(ABC):
    """Starts the jobs of one experiment, whose logs lie in `folder`."""

    name: ClassVar[str]  # as launcher.kind and the event log say it
    title: ClassVar[str]  # as sentences say it
    queues: ClassVar[bool] = False  # it runs jobs by itself, and the launcher leaves; else that stays until the last
    ranks: ClassVar[bool] = False  # it starts several processes for a cell
    blocks: ClassVar[bool] = False  # a job runs in the launcher, which can do nothing else meanwhile

    def __init__(self, experiment_dir: Path) -> None:
        self.directory, self.folder = experiment_dir, experiment_dir / "jobs"

    @abstractmethod
    def submit(
        self, config: Config, jobs: Sequence[Job], *, after: Collection[str] = (), delay: float = 0.0
    ) -> Iterable[str]:
        """Submit jobs of one kind; yields the id of each as soon as it is taken.

        Where `queues`, they start when the jobs `after` have ended, however, and not before `delay` seconds.
        Raises `UserError` where a job is not taken.
        """

    @abstractmethod
    def states(self, ids: Collection[str]) -> dict[str, JobState]:
        """Id → state of the jobs that it knows. Raises `NoAnswer`."""

    @abstractmethod
    def cancel(self, ids: Collection[str]) -> None:
        """End jobs with SIGTERM; one that has ended is no error. Raises `UserError` where that cannot be asked."""

    def check(self, config: Config) -> None:
        """Raise `UserError` for a configuration that it can never run."""
        if config.launcher.ranks > 1 and not self.ranks:
            raise UserError(
                f"launcher.ranks={config.launcher.ranks} needs a process for each rank, and launcher={self.name} "
                "starts one: use launcher=local."
            )
        if not self.queues:
            self.slots(config)

    def check_submission(self, config: Config, together: int = 1) -> None:
        """Raise `UserError` where it would refuse a job now; `together`: of how many cells at once."""

    def slots(self, config: Config) -> list[str | None]:
        """One slot for each cell that runs at once on this machine: its GPUs, as CUDA_VISIBLE_DEVICES names them."""
        return machine_slots(config)

    def names(self, ids: Iterable[str]) -> list[str]:
        """The ids as a user would cancel them: those of one array once."""
        return list(dict.fromkeys(ids))

    def log_of(self, id: str) -> Path:
        """Where a job's stderr goes."""
        return self.folder / f"{id}_0_log.err"

    def environment(self, job: Job) -> dict[str, str]:
        """The variables of a process that runs the job."""
        return {**outside_environment(), **job.environment, STARTED_BY: self.name}

    # What a job asks of the scheduler that started it.

    def this_job(self) -> ThisJob | None:
        """The job that this process is a part of; None where this scheduler did not start it."""
        return ThisJob(str(os.getpid())) if os.environ.get(STARTED_BY) == self.name else None

    def ending(self, job: ThisJob) -> Ending | None:
        """How the scheduler is ending this run of the job by itself; None where it is not."""
        return None

    def requeue(self, id: str, delay: float = 0.0) -> bool:
        """End this run of a job and start it again, not before `delay` seconds; False where that is refused."""
        return False

    def is_time_up(self, config: Config, id: str) -> bool:
        """True for a job so near its time limit that this is what it has been warned of."""
        return False
