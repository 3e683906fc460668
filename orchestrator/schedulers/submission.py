"""What submitit submits with: processes of this machine, or jobs of Slurm."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import submitit
from submitit.core.core import Executor, Job
from submitit.core.utils import FailedJobError

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, LauncherConfig
from orchestrator.schedulers import slurm

ALWAYS = 10**6  # how often submitit would start a job again after its time limit: we count by ourselves
OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")  # how the variables begin that Slurm gives a job
CURES = (  # words of sbatch, in lower case → what helps
    ("job array", "set launcher.slurm.array=false"),
    ("partition", "choose one with launcher.slurm.partition"),
    ("generic resource", "leave launcher.slurm.gpus out where there are none, or choose a partition that has them"),
    ("node name", "mend launcher.slurm.options"),
    ("unrecognized option", "mend launcher.slurm.options"),
    ("account", "mend launcher.slurm.account"),
    ("qos", "mend launcher.slurm.qos"),
    ("feature", "mend launcher.slurm.constraint"),
    ("memory", "lower launcher.slurm.memory_gb"),
)
OF_A_TASK = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}


class OutsideSlurmExecutor(submitit.SlurmExecutor):
    """submitit's, whose sbatch sees nothing of the job that this process may be a part of.

    The environment of this process stays as it is: other threads of a cell read it. (An array is submitted by
    submitit's own class: see `submit`.)
    """

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        unset = [word for name in _inherited() for word in ("-u", name)]
        command: list[str] = super()._make_submission_command(submission_file_path)
        return ["env", *unset, *command] if unset else command


def local(config: Config, folder: Path, tasks: int = 1) -> Executor:
    """Processes of this machine, with their logs in `folder`; `tasks` of them for each job."""
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=60 * config.launcher.timeout_hours, tasks_per_node=tasks)
    return executor


def slurm_cells(
    config: Config, folder: Path, options: Mapping[str, Any] = MappingProxyType({}), **more: Any
) -> submitit.SlurmExecutor:
    """Jobs of Slurm that each run a cell, start again when preempted, and try again what died.

    `options` are sbatch's, beside those of the configuration; `more` are submitit's.
    """
    launcher, ask = config.launcher, config.launcher.slurm
    limits = [f"--retries={launcher.retries}", f"--backoff={launcher.backoff_seconds}"]
    retry = shlex.join([sys.executable, "-m", "orchestrator.jobs.retry", *limits, str(folder.parent.resolve())])
    afterwards = [
        "code=$?",
        f'[ "$code" -eq 0 ] || {retry} "$code"',
        'exit "$code"',
    ]
    asked = {
        **_asked(launcher, ask.partition, ask.qos),
        "mem": _megabytes(ask.memory_gb),
        "nodes": ask.nodes,
        "ntasks_per_node": launcher.ranks // ask.nodes,
        "cpus_per_task": ask.cpus or config.train.threads + 1,
        "gpus_per_node": ask.gpus * (launcher.ranks // ask.nodes) or None,
        "constraint": ask.constraint,
        "teardown": afterwards,
        "array_parallelism": launcher.parallel or ALWAYS,
        "additional_parameters": {"requeue": True, **ask.options, **options},
    }
    return _slurm(folder, asked | more)


def slurm_beside(config: Config, folder: Path, *, nice: int = 0, **more: Any) -> submitit.SlurmExecutor:
    """Jobs of Slurm that use one core and no GPU: a cell's readings, the comparison."""
    launcher, ask = config.launcher, config.launcher.slurm
    asked = {
        **_asked(launcher, ask.side_partition or ask.partition, ask.side_qos or ask.qos),
        "cpus_per_task": config.train.threads,
        "mem": _megabytes(ask.side_memory_gb),
        "additional_parameters": {"requeue": True, **({"nice": nice} if nice else {})},
    }
    return _slurm(folder, asked | more)


def refuse_impossible(config: Config, folder: Path, together: int = 1) -> None:
    """Raise `UserError` where Slurm would not take a cell's job, or not an array of `together` of them."""
    if shutil.which("sbatch") is None:
        raise UserError("launcher=slurm needs sbatch, which is not on the PATH: launch from a login node.")
    if "%" in str(folder.resolve()):
        raise UserError(f"{folder.parent} has a % in its path, which Slurm replaces in the names of logs: use another.")
    for kind, build in (("cell", slurm_cells), ("comparison", slurm_beside)):
        with tempfile.TemporaryDirectory() as directory, _outside_of_a_job():
            script, executor = Path(directory) / "job.sh", build(config, folder)
            array = {"map_count": together} if kind == "cell" and together > 1 else {}  # as submitit asks for one
            executor.parameters.update(array)
            script.write_text(executor._make_submission_file_text("true", ""))
            if said := slurm.refusal(script):
                if "job array" in said:
                    said += f", of {together} tasks; `scontrol show config` has MaxArraySize"
                raise UserError(f"Slurm would take no such job for a {kind} ({said}): {_cure(said)}.")


def submit(executor: Executor, *functions: Callable[[], Any]) -> list[Job[Any]]:
    """Have every one of `functions` run; several as one array where the executor has such.

    submitit's controller of local processes ends them a second after Ctrl-C, which reaches the whole group, and dies
    of Slurm's warning, which reaches every process of a job. Ignored by inheritance, they reach only this process,
    which passes them on, and the cells.
    Raises `UserError` where nothing can be submitted.
    """
    lasting = isinstance(executor, submitit.LocalExecutor) and _is_main_thread()  # sbatch is gone in a moment
    signals = (signal.SIGINT, signal.SIGUSR2) if lasting else ()
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    alone = isinstance(executor, OutsideSlurmExecutor) and len(functions) == 1  # and sees to it by itself
    try:
        with nullcontext() if alone else _outside_of_a_job():
            return executor.submit_array(list(functions)) if len(functions) > 1 else [executor.submit(functions[0])]
    except OSError as error:
        raise UserError(f"{executor.folder} cannot take a job ({error}): make room or make it writable.") from error
    except FailedJobError as error:
        said = " ".join(str(error).replace("sbatch: error:", "").split())
        raise UserError(f"Slurm took no job ({said}): {_cure(said)}.") from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _cure(said: str) -> str:
    """What helps against that answer of sbatch."""
    if slurm.is_no_answer(said):
        return "its controller does not answer, try again in some minutes"
    return next(
        (cure for words, cure in CURES if words in said.lower()), "mend launcher.slurm or launcher.timeout_hours"
    )


def _megabytes(gigabytes: float | None) -> str | None:
    return f"{round(1024 * gigabytes)}M" if gigabytes else None


def _asked(launcher: LauncherConfig, partition: str | None, qos: str | None) -> dict[str, Any]:
    return {
        "time": max(1, round(60 * launcher.timeout_hours)),  # minutes
        "partition": partition,
        "qos": qos,
        "account": launcher.slurm.account,
        "signal_delay_s": launcher.slurm.warning_seconds,
        "setup": ["set -e", *launcher.slurm.setup, "set +e"],  # what could not be set up is no place to train in
    }


def _slurm(folder: Path, asked: dict[str, Any]) -> submitit.SlurmExecutor:
    executor = OutsideSlurmExecutor(folder=folder.resolve(), max_num_timeout=ALWAYS)
    executor.update_parameters(**{key: value for key, value in asked.items() if value is not None})
    return executor


def _inherited() -> list[str]:
    """The variables of the job that this process is a part of: what it submits would inherit them."""
    if "SLURM_JOB_ID" not in os.environ:
        return []
    theirs = (name for name in os.environ if name.startswith(OF_A_JOB) or name in OF_A_TASK)
    return [name for name in theirs if name != "SLURM_CONF"]


@contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Without `_inherited`, for a process that has no threads yet."""
    hidden = {name: os.environ.pop(name) for name in _inherited()}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
