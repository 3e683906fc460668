"""The protocol of schedulers, which start jobs, with defaults for one that can only submit, list and cancel them.

A new scheduler is a subclass in a file of its own, a line in `SCHEDULERS`, and a YAML in conf/launcher.
"""

from __future__ import annotations

import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import ClassVar

from submitit.core.utils import DelayedSubmission

from orchestrator.common import environment
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, Device

STARTED_BY = "ORCHESTRATOR_SCHEDULER"  # environment variable of a job: the scheduler that started it


class Resources(StrEnum):
    """The processors that a job needs."""

    cell = "cell"  # `launcher.ranks` processes, each with its GPU and `train.threads` cores
    side = "side"  # one process and no GPU: the comparison
    background = "background"  # the same, after everything else: readings


@dataclass(frozen=True)
class Job:
    """A job to submit: `python -m MODULE ARGUMENTS`, where the module has `main(arguments) -> exit code`.

    submitit pickles it and calls it in the process that it starts.
    """

    module: str
    arguments: tuple[str, ...]
    name: str  # as the scheduler lists it; the same for every cell of an experiment
    resources: Resources = Resources.side
    environment: Mapping[str, str] = field(default_factory=dict)  # added to the launcher's
    on_failure: tuple[str, ...] = ()  # command that a queued job runs on an exit code other than 0, which is appended

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments]

    def run(self) -> int:
        """Run the job in this process; return its exit code."""
        code: int = import_module(self.module).main(list(self.arguments))
        return code

    def __call__(self) -> None:
        """Run the job in its environment; end the process where the exit code is not 0.

        submitit's own settings, such as an empty CUDA_VISIBLE_DEVICES, come after the launcher's, and before these.
        """
        os.environ.update(self.environment)
        if code := self.run():
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """The same job again, for a preemption that comes before the job handles signals itself."""
        return DelayedSubmission(self)


class Phase(StrEnum):
    """The phase of a submitted job."""

    waiting = "waiting"
    running = "running"
    suspended = "suspended"  # its processes are frozen until the scheduler resumes them
    ending = "ending"  # its processes may still run for a moment
    ended = "ended"
    cancelled = "cancelled"  # ended on request


@dataclass(frozen=True)
class JobState:
    """One job, or one task of an array, as its scheduler knows it."""

    phase: Phase
    word: str = ""  # the scheduler's own, such as OUT_OF_MEMORY
    reason: str = ""  # the reason why it waits

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
    restart: int = 0  # earlier starts by its scheduler


class Ending(StrEnum):
    """The outcome for a job that its scheduler is ending by itself."""

    requeued = "requeued"  # it will start the job again
    cancelled = "cancelled"  # for good


class NoAnswer(UserError):
    """The scheduler does not answer: the states of its jobs are unknown."""


class Scheduler(ABC):
    """Starts the jobs of one experiment, whose logs lie in `folder`."""

    name: ClassVar[str]  # in launcher.kind and the event log
    title: ClassVar[str]  # in messages
    queues: ClassVar[bool] = False  # it runs jobs without the launcher, which else stays until the last has ended
    ranks: ClassVar[bool] = False  # it can start several processes for one cell
    blocks: ClassVar[bool] = False  # a job runs in the launcher's process, and blocks it
    own_lines: ClassVar[re.Pattern[str]] = re.compile(r"submitit (INFO|WARNING|ERROR) ")  # in a job's log: their start

    def __init__(self, experiment_dir: Path) -> None:
        self.directory, self.folder = experiment_dir, experiment_dir / "jobs"

    @abstractmethod
    def submit(
        self, config: Config, jobs: Sequence[Job], *, after: Collection[str] = (), delay: float = 0.0
    ) -> Iterable[str]:
        """Submit jobs of one kind; yield the id of each as soon as it is accepted.

        Where `queues`, they start when the jobs `after` have ended, in whatever way, and not before `delay` seconds.
        Raises `UserError` where a job is refused.
        """

    @abstractmethod
    def states(self, ids: Collection[str]) -> dict[str, JobState]:
        """Id → state of the jobs that the scheduler knows. Raises `NoAnswer`."""

    @abstractmethod
    def cancel(self, ids: Collection[str]) -> None:
        """End jobs with SIGTERM; one that has ended is not an error. Raises `UserError` where the scheduler refuses."""

    def check(self, config: Config) -> None:
        """Raise `UserError` for a configuration that the scheduler can never run."""
        if config.launcher.ranks > 1 and not self.ranks:
            raise UserError(
                f"launcher.ranks={config.launcher.ranks} needs a process for each rank, and launcher={self.name} "
                "starts one: use launcher=local."
            )
        if not self.queues:
            self.slots(config)

    def check_submission(self, config: Config, together: int = 1) -> None:
        """Raise `UserError` where the scheduler would refuse a job now; `together`: cells submitted at once."""

    @staticmethod
    def slots(config: Config) -> list[str | None]:
        """One slot for each cell that may run at once on this machine.

        A slot is the cell's GPUs, one for each rank, as CUDA_VISIBLE_DEVICES names them, or None on the CPU. Raises
        `UserError` where the machine has too few GPUs for one cell.
        """
        import torch  # takes a second, which the command `status` does without

        each = config.launcher.ranks
        if config.train.device == Device.cpu or not torch.cuda.is_available():
            return [None] * (config.launcher.parallel or max(1, usable_cores() // (config.train.threads * each)))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        names = names[: torch.cuda.device_count()]
        gpus = [",".join(names[i : i + each]) for i in range(0, len(names) - each + 1, each)]
        if not gpus:
            raise UserError(
                f"launcher.ranks={each} needs {each} GPUs for each cell, and torch sees {len(names)} here: "
                "lower launcher.ranks, or set train.device=cpu."
            )
        return [gpus[i % len(gpus)] for i in range(config.launcher.parallel or len(gpus))]

    def names(self, ids: Iterable[str]) -> list[str]:
        """The ids as a user would cancel them: one for each array."""
        return list(dict.fromkeys(ids))

    def log_of(self, id: str) -> Path:
        """The file of a job's stderr."""
        return self.folder / f"{id}_0_log.err"

    def environment(self, job: Job) -> dict[str, str]:
        """The variables of a process that runs the job."""
        return {**outside_environment(), **job.environment, STARTED_BY: self.name}

    # Asked of all schedulers, by `inherited` and `usable_cores` below: this process may be a part of anybody's job.

    @classmethod
    def allocation(cls) -> ThisJob | None:
        """The job of this scheduler that this process is a part of, whoever submitted it; None outside of one."""
        return None

    @classmethod
    def job_variables(cls) -> list[str]:
        """The names of the variables that the `allocation` gave this process."""
        return []

    @classmethod
    def allotted_cores(cls) -> int | None:
        """The CPU cores of the `allocation` on this machine; None where that is unknown."""
        return None

    # Called by a job, of the scheduler that started it.

    def this_job(self) -> ThisJob | None:
        """The job that this process is a part of; None where this scheduler did not start it."""
        return ThisJob(str(os.getpid())) if os.environ.get(STARTED_BY) == self.name else None

    def ending(self, job: ThisJob) -> Ending | None:
        """The outcome where the scheduler is ending this run of the job by itself; None where it is not."""
        return None

    def requeue(self, id: str, delay: float = 0.0) -> bool:
        """End this run of a job and start it again after at least `delay` seconds; False where that is refused."""
        return False

    def is_time_up(self, config: Config, id: str) -> bool:
        """True where a job's time limit is so near that a warning must mean it."""
        return False


def inherited() -> list[str]:
    """The names of the variables of the jobs that this process is a part of."""
    return list(dict.fromkeys(name for kind in Scheduler.__subclasses__() for name in kind.job_variables()))


def outside_environment() -> dict[str, str]:
    """The environment of this process without the `inherited` variables.

    A child process that inherited them would take itself for a part of that job.
    """
    hidden = set(inherited())
    return {name: value for name, value in os.environ.items() if name not in hidden}


def usable_cores() -> int:
    """The CPU cores that this process may use; in a job at most those of its allocation, enforced or not."""
    allotted = [cores for kind in Scheduler.__subclasses__() if (cores := kind.allotted_cores())]
    return min([environment.usable_cores(), *allotted])
