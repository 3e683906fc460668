"""Hydra's multirun (`-m`): one experiment per job, in this process or in those that Hydra's launcher starts."""

from __future__ import annotations

import math
import os
import signal
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from orchestrator.common.errors import UserError, complain
from orchestrator.common.signals import stops
from orchestrator.sweep.records import read_records, summary


@dataclass(frozen=True)
class Launcher:
    """The traits of one of Hydra's launchers."""

    side_by_side: bool = False  # jobs run at the same time on this machine, each in a process of its own
    log_files: bool = False  # jobs write their output to files, not to the terminal
    queue: str = ""  # that gives each job its own allocation; the jobs outlive the command
    command: str = ""  # of the queue, which submitit looks for
    left: str = ""  # sentence on the jobs that the command leaves there
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of `hydra.launcher`, below what the user sets


# submitit's default folder contains the job's id, so the logs could not be named before the job starts.
LOGS = {"submitit_folder": "${hydra.sweep.dir}/logs"}
# By class name. The last is Hydra's own launcher `submitit_slurm`: the one place of this package that names Slurm.
LAUNCHERS = {
    "BasicLauncher": Launcher(),
    "JoblibLauncher": Launcher(side_by_side=True),
    "LocalLauncher": Launcher(side_by_side=True, log_files=True, defaults={**LOGS, "timeout_min": 60 * 24 * 30}),
    "SlurmLauncher": Launcher(
        queue="Slurm",
        command="srun",
        left="The jobs in Slurm wait or run on: see squeue, and end them with scancel. ",
        log_files=True,
        defaults={**LOGS, "additional_parameters.requeue": True},
    ),
}


class Multirun(Callback):
    """The state that a command shares with the jobs of its multirun. Hydra pickles it along with every job."""

    current: ClassVar[Multirun | None] = None  # that this process started, or is a job of

    def __init__(self) -> None:
        self.launcher = Launcher()
        self.directory = Path()  # of the jobs' records and locks
        self.jobs = 1
        self.swept_keys = frozenset[str]()
        self.visible_gpus: str | None = None
        self.interrupted = False

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Prepare the jobs. Hydra calls this in the command's process, before it calls the launcher."""
        Multirun.current = self
        settings, launcher = config.hydra, config.hydra.launcher
        self.launcher = LAUNCHERS.get(launcher._target_.rpartition(".")[2], Launcher())
        for key, value in self.launcher.defaults.items():
            if not any(f"hydra.launcher.{key}=" in override for override in settings.overrides.hydra):
                OmegaConf.update(launcher, key, value, force_add=True)
        self.directory = Path(settings.sweep.dir).absolute() / f"jobs-{uuid.uuid4().hex[:12]}"
        params = [f"{key}={value}" for key, value in (settings.sweeper.get("params") or {}).items()]
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        overrides = parser.parse_overrides([*params, *settings.overrides.task])
        sweeps = [override for override in overrides if override.is_discrete_sweep()]
        self.swept_keys = frozenset(sweep.key_or_group for sweep in sweeps)
        self.jobs = math.prod(len([*sweep.sweep_string_iterator()]) for sweep in sweeps)
        if not self.jobs:
            matched = " ".join(override.input_line or "" for override in sweeps)
            complain(f"{matched} matches nothing: `python -m orchestrator` lists the experiments.")
            sys.exit(2)  # Hydra turns a callback's exceptions into warnings
        self.visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        if self.launcher.log_files:
            _refuse_what_sbatch_misreads(launcher)
            folder = Path(launcher.submitit_folder.replace("%j", "*")).absolute()
            print(f"Logs of the {self.jobs} jobs: {folder}/*_log.out and *_log.err", flush=True)
        if self.launcher.side_by_side:
            self._leave_signals_to_jobs()

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Become the current multirun. Hydra calls this in the job's process."""
        if config.hydra.mode == RunMode.MULTIRUN:
            Multirun.current = self

    def _leave_signals_to_jobs(self) -> None:
        """Have Ctrl-C, SIGTERM and SIGHUP stop the jobs but not this process, which waits and prints the summary.

        Child processes inherit the blocked SIGINT, lest Ctrl-C end one between two jobs; a job unblocks it
        (`job.interruptible`).
        """
        with suppress(ImportError):  # joblib's helper process, whose later start would unblock SIGINT
            from joblib.externals.loky.backend import resource_tracker

            resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        for number in set(stops()) - {signal.SIGUSR2}:
            signal.signal(number, self._stop)

    def _stop(self, number: int, _: object) -> None:
        self.interrupted = True
        if number == signal.SIGTERM:  # unlike the others, it reaches this process alone
            for children in Path("/proc/self/task").glob("*/children"):
                for child in children.read_text(encoding="utf-8").split():
                    with suppress(ProcessLookupError):
                        os.kill(int(child), number)

    def finish(self) -> int:
        """Print the errors that are only in log files, then the summary; return the largest exit code of a job."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # delivers a pending Ctrl-C to `_stop`
        records = read_records(self.directory)
        for record in records if self.launcher.log_files else ():
            for message in record.messages:
                complain(message)
        if records:
            print("", *summary(records), sep="\n", flush=True)
        return max((record.exit_code or 0 for record in records), default=0)

    def explain(self, error: BaseException) -> str | None:
        """One sentence for the exception of a launcher that could not start a job or lost one; None for any other."""
        reason, cure = " ".join(str(error).split()), "correct that, or choose another hydra/launcher"
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, OSError):
            return f"{self.directory.parent} cannot be written ({error}): choose a writable place with root=..."
        if isinstance(error.__cause__, CalledProcessError):  # submitit has printed the answer of sbatch
            return f"{self.launcher.queue or 'The launcher'} refused jobs of this multirun, as it says above: {cure}."
        if type(error).__module__.startswith(("submitit.", "joblib.")):
            return f"A job died without reporting why ({reason:.200}): the same command resumes what is unfinished."
        if self.launcher.queue and self.launcher.command in reason:
            return f"{self.launcher.queue} is not available ({reason:.300}): {cure}."
        return None


def _refuse_what_sbatch_misreads(launcher: DictConfig) -> None:
    """Exit where a value would break out of its comment in the batch script, or sbatch would replace a percent sign.

    Exits because Hydra turns a callback's exceptions into warnings. `setup` may hold any command.
    """
    for key, value in launcher.items():
        misread = "\\" in repr(value) or (key == "submitit_folder" and "%" in value.replace("%j", ""))
        if misread and key != "setup":
            complain(f"hydra.launcher.{key!s}={value!r} holds a backslash, line break or percent sign: leave it out.")
            sys.exit(2)
