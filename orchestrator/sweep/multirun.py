"""Hydra's multirun: every job is one whole experiment, in this process or in one that a launcher of Hydra's starts."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from orchestrator.common.errors import INTERRUPTED
from orchestrator.common.terminal import Voice
from orchestrator.config.schema import Config, LauncherKind
from orchestrator.storage import locks, metrics_log
from orchestrator.sweep import outcome
from orchestrator.sweep.outcome import Outcome
from orchestrator.sweep.signals import Listener

if TYPE_CHECKING:
    from orchestrator.experiments.experiment import Experiment
    from orchestrator.sweep.announcement import Announcement

POLL_SECONDS = 0.5
TURN_SECONDS = 5.0  # the longest wait for one's turn to speak


@dataclass(frozen=True)
class Place:
    """Where one of Hydra's launchers runs the jobs of a multirun."""

    here: bool = True  # on this machine, whose cores and GPUs its jobs share, and which one Ctrl-C means
    apart: bool = True  # in processes of their own
    logged: bool = True  # whose output goes to files
    defaults: dict[str, Any] = field(default_factory=dict)  # of `hydra.launcher`, where the user says nothing


# submitit's default folder is a hidden one of its own for each job, and a log there cannot be named before it begins.
FOLDER = {"submitit_folder": "${hydra.sweep.dir}/logs"}

# By class name. An hour is the plugin's default for a job: on this machine nobody needs a limit, and Slurm starts
# the job again where it ended as long as its budget of timeouts lasts.
PLACES = {
    "BasicLauncher": Place(apart=False, logged=False),
    "JoblibLauncher": Place(logged=False),
    "LocalLauncher": Place(defaults={**FOLDER, "timeout_min": 60 * 24 * 30}),
    "SlurmLauncher": Place(
        here=False, defaults={**FOLDER, "max_num_timeout": 1000, "additional_parameters": {"requeue": True}}
    ),
}


class Multirun(Callback):
    """What the jobs of one multirun know of each other. Hydra pickles it along with every job.

    `conf/config.yaml` names it as a callback; `current()` is that of this process.
    """

    def __init__(self) -> None:
        self.record: Path | None = None  # where every job leaves its outcome; None where there is but a run
        self.ended: list[Outcome] = []  # that run
        self.interrupted = False  # the process that the user started, not only its jobs
        self.began = False  # whether what was composed has begun to run in this process
        self.place = Place()
        self.announcement: Announcement | None = None  # only in the process that the user started
        self.job = 0  # that runs in this process
        self.varied: frozenset[str] = frozenset()  # keys that differ from job to job
        self.jobs = 1
        self.visible_gpus: str | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """In the process that the user started, before any job."""
        global _current
        _current = self
        launcher = config.hydra.launcher
        self.place = PLACES.get(launcher._target_.rpartition(".")[2], Place(here=False))
        params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create())
        assert isinstance(params, dict)
        words = [*(f"{key!s}={value}" for key, value in params.items()), *config.hydra.overrides.task]
        sweeps = [o for o in OverridesParser.create().parse_overrides(words) if o.is_sweep_override()]
        self.varied = frozenset(sweep.key_or_group for sweep in sweeps)
        self.jobs = math.prod(map(_values, sweeps))
        self.visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        given = {word.lstrip("+").partition("=")[0] for word in config.hydra.overrides.hydra}
        with open_dict(launcher):
            for key, value in self.place.defaults.items():
                if not any(word == f"hydra.launcher.{key}" for word in given):
                    launcher[key] = {**value, **launcher[key]} if isinstance(value, dict) else value
        sweep_dir = Path(config.hydra.sweep.dir).absolute()
        self.record = sweep_dir / f"{uuid.uuid4().hex}.jsonl"
        if self.place.logged:
            _refuse_what_a_job_script_misreads(sweep_dir, launcher)
            self._announce(Path(launcher.submitit_folder).absolute())
        if self.place.here and self.place.apart:
            self._leave_stopping_to_the_jobs()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "announcement": None}

    def _announce(self, folder: Path) -> None:
        from orchestrator.sweep.announcement import Announcement

        logs = str(folder).replace("%j", "*")
        self.announcement = Announcement(folder, f"{self.jobs} jobs, whose logs are {logs}/*_log.out and *_log.err")

    def _leave_stopping_to_the_jobs(self) -> None:
        """Ctrl-C reaches every process of the terminal, but ends neither this one nor those that run the jobs.

        What is started from here inherits that it waits, until a job lets it through (`Listener`). Other signals that
        end this process alone are passed on.
        """
        with suppress(ImportError):  # where it starts later, it lets Ctrl-C through again
            from joblib.externals.loky.backend import resource_tracker

            resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, self._interrupted)
        signal.signal(signal.SIGTERM, self._terminated)

    def _interrupted(self, *_: object) -> None:
        self.interrupted = True

    def _terminated(self, *_: object) -> None:
        self.interrupted = True
        for children in Path("/proc/self/task").glob("*/children"):
            for child in children.read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGTERM)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """In the job's process; in a run, too."""
        global _current
        _current, self.began, self.job = self, True, config.hydra.job.get("num", 0)
        if self.record is not None and self.place.apart:
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == "" and not config.hydra.launcher.get("gpus_per_node")
            if hidden and self.place.here and self.visible_gpus != "":  # submitit hides all GPUs nobody asked for
                del os.environ["CUDA_VISIBLE_DEVICES"]
                if self.visible_gpus is not None:
                    os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus

    def swept(self, job_overrides: Sequence[str]) -> list[str]:
        """Those of a job's overrides that vary from job to job; where none is known to, all of them."""
        return [o for o in job_overrides if not self.varied or o.lstrip("+").partition("=")[0] in self.varied]

    def begins(self, job_overrides: Sequence[str]) -> None:
        """Leave word that this process begins that job."""
        log = ""
        if self.place.logged and self.record is not None:
            import submitit

            log = str(submitit.JobEnvironment().paths.stdout)
        self.note(Outcome(self.job, None, [], " ".join(self.swept(job_overrides)), log=log))

    def introduce(self, experiment: Experiment, console: Console) -> None:
        """Leave word which experiment the job of this process is, and name it to whoever reads along."""
        if self.record is None:
            return
        self.note(Outcome(self.job, None, [], directory=str(experiment.directory)))
        if isinstance(console.file, Voice):
            console.file.title = experiment.name
        else:
            console.print(f"\n── {experiment.name} ──", markup=False, highlight=False, soft_wrap=True)

    def console(self, swept: Sequence[str]) -> Console:
        """For a job; where several have the same terminal, each line of it says whose it is.

        Without a terminal, where rich would assume 80 columns, or where several processes have the same one: 100.
        """
        return Console(
            file=Voice(sys.stdout, f"{' '.join(swept)}: ", self.turn) if self._share_a_terminal() else None,  # type: ignore[arg-type]
            width=None if sys.stdout.isatty() else 100,
            force_terminal=False if self.place.apart and self.record is not None else None,
        )

    def _share_a_terminal(self) -> bool:
        return self.record is not None and self.place.here and self.place.apart and not self.place.logged

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else of those who have the same terminal speaks during the block."""
        with ExitStack() as stack:
            if self.record is not None and self._share_a_terminal():
                with suppress(OSError):  # then in disorder, rather than not at all
                    file = stack.enter_context(self.record.with_suffix(".terminal").open("a"))
                    locks.take(file.fileno(), TURN_SECONDS)
            yield

    def note(self, left: Outcome) -> None:
        """Leave an outcome where the process that the user started finds it."""
        if self.record is None:
            self.ended.append(left)
        else:
            metrics_log.append(self.record, vars(left))

    def outcomes(self) -> list[Outcome]:
        """Those of all jobs that have ended."""
        return [outcome for outcome in self.known() if outcome.code is not None]

    def known(self) -> list[Outcome]:
        """Those of all jobs that have begun."""
        if self.record is None:
            return self.ended
        return outcome.newest(Outcome(**record) for record in metrics_log.read(self.record))

    def repeat(self, complain: Callable[[str], None]) -> None:
        """Say here what the jobs said in their files."""
        if self.record is not None and self.place.logged:
            for ended in self.outcomes():
                for sentence in ended.said:
                    complain(sentence)

    def sum_up(self) -> None:
        """Where the jobs have ended, or are left alone: print what became of each experiment, and where it is."""
        if self.announcement is not None:
            self.announcement.close()
        if self.record is not None and (known := self.known()):
            print("", *outcome.told(known), sep="\n", flush=True)

    def farewell(self) -> str:
        """What to say when the user stopped it."""
        if self.record is None or self.place.here:
            return "Interrupted: the same command goes on from the newest checkpoints."
        return (
            "Interrupted, but not the jobs that wait or run elsewhere: see squeue, end them with scancel. "
            "Later, the same command goes on from the newest checkpoints."
        )

    def explain(self, error: Exception) -> str | None:
        """One sentence for what Hydra's launchers raise where a job could not be started, or died; else None."""
        module = type(error).__module__.partition(".")[0]
        reason = " ".join(str(error).split())
        if self.record is None:
            return None
        if isinstance(error.__cause__, CalledProcessError) and error.__cause__.stderr:
            took = "not all jobs" if self.announcement and self.announcement.close() else "no job"
            return f"Slurm took {took} of this multirun, as it says above: mend that, or choose another hydra/launcher."
        if "srun" in reason or type(error).__name__ == "FailedSubmissionError" or "sbatch" in reason:
            return f"Slurm took no job of this multirun ({reason:.300}): mend that, or choose another hydra/launcher."
        if module in ("submitit", "joblib"):
            logs = f"; logs: {self.record.parent}" if self.place.logged else ""
            return (
                f"A job of the multirun ended without a word ({reason:.200}{logs}): "
                "once the others have ended, the same command resumes what is unfinished."
            )
        if isinstance(error, OSError):
            return f"{self.record.parent} cannot be written ({error}): choose a writable place with root=..."
        return None

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """For the length of a job: see `Listener`. In the process that the user started all stays as it is."""
        listener = Listener()
        if not self.place.apart:
            yield listener
            return
        with listener:
            yield listener

    def stopped(self) -> bool:
        """Whether somebody stopped one of the jobs on this machine, which means all of them."""
        return self.place.here and any(ended.code == INTERRUPTED for ended in self.outcomes())

    @contextmanager
    def share(self, config: Config) -> Iterator[None]:
        """Wait for a part of this machine that no other job of the multirun has, and keep it for the block.

        There are as many parts as there are jobs, but none without a slot for a cell (`launch.slots`). Sets
        `config.launcher.parallel` to what fits, or lets this process see only its part of the GPUs.
        """
        from orchestrator import launch

        alone = self.record is None or self.jobs < 2 or not (self.place.here and self.place.apart)
        if alone or config.launcher.kind not in (LauncherKind.local, LauncherKind.debug):
            yield
            return
        assert self.record is not None
        asked, config.launcher.parallel = config.launcher.parallel, None
        machine = launch.slots(config)
        parts = max(1, min(self.jobs, len(machine) // (asked or 1)))
        with ExitStack() as stack:
            while (part := self._take(parts, stack)) is None:
                time.sleep(POLL_SECONDS)
            mine = machine[part::parts]
            config.launcher.parallel = asked or len(mine)
            with _visible(mine):
                yield

    def _take(self, parts: int, stack: ExitStack) -> int | None:
        assert self.record is not None
        for part in range(parts):
            with ExitStack() as attempt:
                if attempt.enter_context(locks.hold(self.record.with_suffix(f".part{part}"), wait=False)):
                    stack.push(attempt.pop_all())
                    return part
        return None


_current = Multirun()


def current() -> Multirun:
    """The multirun that this process has begun or is a job of; one without a record where there is none."""
    return _current


def forget() -> None:
    """Begin anew: what an earlier multirun of this process left does not count."""
    global _current
    _current = Multirun()


def _refuse_what_a_job_script_misreads(sweep_dir: Path, launcher: DictConfig) -> None:
    """Exit with a sentence, since Hydra makes a warning of any exception here.

    submitit quotes what it writes into a script, but a line break ends the comment in which that stands, and a percent
    sign in a path stands for a part of the job's id. `setup` is a list of shell commands by intent.
    """
    if "%" in str(sweep_dir) or not str(sweep_dir).isprintable():
        sys.exit(_said(f"{str(sweep_dir)!r} holds a percent sign or what cannot be printed: choose another root=..."))
    told = OmegaConf.to_container(launcher, resolve=True)
    assert isinstance(told, dict)
    for key, value in told.items():
        for text in _texts(value) if key != "setup" else ():
            if not text.isprintable():
                sys.exit(_said(f"hydra.launcher.{key!s}: {text!r} cannot be printed: write it in one line."))


def _texts(value: Any) -> Iterator[str]:
    """Every key and value in it."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    else:
        yield str(value)


def _said(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


@contextmanager
def _visible(gpus: Sequence[str | None]) -> Iterator[None]:
    """Let this process, which may run another job later, and what it starts see these GPUs only."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if any(gpus):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(filter(None, gpus))
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _values(sweep: Override) -> int:
    return sum(1 for _ in sweep.sweep_string_iterator()) if sweep.is_discrete_sweep() else 1
