"""Batch scripts: the options with which jobs are submitted to Slurm, and the cures for its refusals."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.schedulers.environment import changed
from orchestrator.schedulers.scheduler import STARTED_BY, Job, Resources, inherited, outside_environment
from orchestrator.schedulers.slurm.commands import is_no_answer

ALWAYS = 10**6  # limit of submitit's restarts after a time limit: the worker counts them itself
CURES = (  # words of sbatch, in lower case → cure
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


class OutsideExecutor(submitit.SlurmExecutor):
    """Hides from sbatch the variables of the job that this process may be a part of.

    The environment of this process stays as it is: other threads of a cell read it. (submitit submits an array through
    its own class: see `submit`.)
    """

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        unset = [word for name in inherited() for word in ("-u", name)]
        command: list[str] = super()._make_submission_command(submission_file_path)
        return ["env", *unset, *command] if unset else command


def executor(
    config: Config, folder: Path, job: Job, after: Collection[str] = (), delay: float = 0.0
) -> submitit.SlurmExecutor:
    """The executor that submits jobs like `job`, to start after the jobs `after` and not before `delay` seconds."""
    setup = [f"export {name}={shlex.quote(value)}" for name, value in {**job.environment, STARTED_BY: "slurm"}.items()]
    failed = f'[ "$code" -eq 0 ] || {shlex.join(job.on_failure)} "$code"'
    later = {"begin": f"now+{round(delay)}"} if delay else {}
    asked = {
        "time": max(1, round(60 * config.launcher.timeout_hours)),  # minutes
        "account": config.launcher.slurm.account,
        "signal_delay_s": config.launcher.slurm.warning_seconds,
        # a job whose setup fails must not train
        "setup": [*setup, "set -e", *config.launcher.slurm.setup, "set +e"],
        "teardown": ["code=$?", failed, 'exit "$code"'] if job.on_failure else None,
        "dependency": "afterany:" + ":".join(arrays(after)) if after else None,
        "job_name": job.name,
        **(_of_cell(config, later) if job.resources == Resources.cell else _beside(config, later, job.resources)),
    }
    made = OutsideExecutor(folder=folder.resolve(), max_num_timeout=ALWAYS)
    made.update_parameters(**{key: value for key, value in asked.items() if value is not None})
    return made


def _of_cell(config: Config, later: dict[str, str]) -> dict[str, Any]:
    """The options of a job that trains a cell."""
    launcher, slurm = config.launcher, config.launcher.slurm
    tasks = launcher.ranks // slurm.nodes
    return {
        "partition": slurm.partition,
        "qos": slurm.qos,
        "mem": _megabytes(slurm.memory_gb),
        "nodes": slurm.nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": slurm.cpus or config.train.threads + 1,
        "gpus_per_node": slurm.gpus * tasks or None,
        "constraint": slurm.constraint,
        "array_parallelism": launcher.parallel or ALWAYS,
        "additional_parameters": {"requeue": True, **slurm.options, **later},
    }


def _beside(config: Config, later: dict[str, str], resources: Resources) -> dict[str, Any]:
    """The options of a job with one core and no GPU."""
    slurm = config.launcher.slurm
    nice = {"nice": slurm.side_nice} if resources == Resources.background and slurm.side_nice else {}
    return {
        "partition": slurm.side_partition or slurm.partition,
        "qos": slurm.side_qos or slurm.qos,
        "mem": _megabytes(slurm.side_memory_gb),
        "cpus_per_task": config.train.threads,
        "additional_parameters": {"requeue": True, **nice, **later},
    }


@contextmanager
def script(config: Config, folder: Path, resources: Resources, together: int) -> Iterator[Path]:
    """The batch script that `submit` would write for a job with those resources, or an array of `together` of them."""
    made = executor(config, folder, Job("", (), "orchestrator", resources))
    made.parameters.update({"map_count": together} if together > 1 else {})  # as submitit asks for an array
    with tempfile.TemporaryDirectory() as directory, changed(outside_environment()):
        path = Path(directory) / "job.sh"
        path.write_text(made._make_submission_file_text("true", ""), encoding="utf-8")
        yield path


def submit(executor: submitit.SlurmExecutor, jobs: Sequence[Job]) -> list[str]:
    """Submit jobs, several as one array; return their ids. Raises `UserError` where Slurm refuses them."""
    try:
        if len(jobs) == 1:  # perhaps in a thread of a cell, whose environment must stay
            return [executor.submit(jobs[0]).job_id]
        with changed(outside_environment()):
            return [job.job_id for job in executor.submit_array(jobs)]
    except OSError as error:
        raise UserError(f"{executor.folder} cannot take a job ({error}): make room or make it writable.") from error
    except FailedJobError as error:
        reason = " ".join(str(error).replace("sbatch: error:", "").split())
        raise UserError(f"Slurm refused the job ({reason}): {cure(reason)}.") from error


def cure(reason: str) -> str:
    """The cure for a refusal by sbatch."""
    if is_no_answer(reason):
        return "its controller does not answer, try again in some minutes"
    words = reason.lower()
    return next((cure for word, cure in CURES if word in words), "mend launcher.slurm or launcher.timeout_hours")


def arrays(ids: Iterable[str]) -> list[str]:
    """The ids with those of the tasks of one array replaced by the array's."""
    return list(dict.fromkeys(id.partition("_")[0] for id in ids))


def _megabytes(gigabytes: float | None) -> str | None:
    return f"{round(1024 * gigabytes)}M" if gigabytes else None
