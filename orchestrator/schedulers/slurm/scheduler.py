"""`launcher=slurm`: the states of our jobs in Slurm, and submitting, requeueing and cancelling them."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from orchestrator.common.errors import UserError
from orchestrator.config.keys import flatten
from orchestrator.config.schema import Config
from orchestrator.config.validation import check_ranges, not_negative, positive
from orchestrator.schedulers.scheduler import Ending, Job, JobState, NoAnswer, Phase, Resources, Scheduler, ThisJob
from orchestrator.schedulers.slurm import batch
from orchestrator.schedulers.slurm.commands import ask, refusal
from orchestrator.storage.event_log import EventLog

OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")  # prefixes of a job's variables
OF_A_TASK = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
REQUEUE_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds
SLACK_SECONDS = 60.0  # tolerance of the time at which Slurm warns of a time limit
RANGES = (
    positive(*(f"launcher.slurm.{key}" for key in ("nodes", "cpus", "memory_gb", "side_memory_gb", "warning_seconds"))),
    not_negative("launcher.slurm.gpus", "launcher.slurm.side_nice"),
)
PHASES = {  # Slurm's state → phase; any other state is that of an ended job
    **dict.fromkeys(
        ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
        Phase.waiting,
    ),
    "RUNNING": Phase.running,
    **dict.fromkeys(("SUSPENDED", "STOPPED"), Phase.suspended),
    **dict.fromkeys(("COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"), Phase.ending),
    "CANCELLED": Phase.cancelled,
}


class Slurm(Scheduler):
    """Jobs that Slurm queues, preempts and starts again. The id of an array's task is `<array>_<task>`."""

    name, title, queues, ranks = "slurm", "Slurm", True, True
    own_lines = re.compile(r"srun: |slurmstepd|slurm_script: ")

    def check(self, config: Config) -> None:
        super().check(config)
        check_ranges(config, RANGES)
        launcher, slurm = config.launcher, config.launcher.slurm
        if launcher.ranks % slurm.nodes:
            raise UserError(
                f"launcher.ranks={launcher.ranks} cannot be spread over launcher.slurm.nodes={slurm.nodes}: "
                "make it a multiple, one process for each GPU."
            )
        for key, value in flatten(vars(slurm)).items():
            if not all(map(str.isprintable, [key, *(value if isinstance(value, list) else [str(value)])])):
                raise UserError(
                    f"launcher.slurm.{key}={value!r} holds a character that cannot be printed: write it on one line."
                )
        for option in slurm.options:
            if not re.fullmatch(r"[a-zA-Z][\w-]*", option):
                raise UserError(
                    f"launcher.slurm.options.{option} is not an option of sbatch: write {{mail-type: END}}."
                )
        if launcher.parallel and not slurm.array:
            raise UserError(
                f"launcher.parallel={launcher.parallel} has no effect with launcher.slurm.array=false: "
                "Slurm limits only the tasks of an array; drop one of the two."
            )
        if 3600 * launcher.timeout_hours <= slurm.warning_seconds:
            raise UserError(
                f"launcher.slurm.warning_seconds={slurm.warning_seconds} is longer than launcher.timeout_hours="
                f"{launcher.timeout_hours}: lower the one or raise the other."
            )

    def check_submission(self, config: Config, together: int = 1) -> None:
        if shutil.which("sbatch") is None:
            raise UserError("launcher=slurm needs sbatch, which is not on the PATH: launch from a login node.")
        if "%" in str(self.folder.resolve()):
            raise UserError(
                f"{self.directory} has a % in its path, which Slurm replaces in names of logs: use another."
            )
        for kind, name in ((Resources.cell, "cell"), (Resources.side, "comparison")):
            count = together if kind == Resources.cell and config.launcher.slurm.array else 1
            with batch.script(config, self.folder, kind, count) as path:
                if reason := refusal(path):
                    if "job array" in reason:
                        reason += f", of {count} tasks; `scontrol show config` has MaxArraySize"
                    raise UserError(f"Slurm would refuse the job of a {name} ({reason}): {batch.cure(reason)}.")

    def submit(
        self, config: Config, jobs: Sequence[Job], *, after: Collection[str] = (), delay: float = 0.0
    ) -> Iterator[str]:
        """Submit the jobs as one array where `launcher.slurm.array` is set, else one by one."""
        executor = batch.executor(config, self.folder, jobs[0], after, delay)
        for group in [jobs] if config.launcher.slurm.array else [[job] for job in jobs]:
            yield from batch.submit(executor, group)

    def states(self, ids: Collection[str]) -> dict[str, JobState]:
        """Id → state of the jobs that Slurm remembers and that are this experiment's.

        A job with one of the ids but another experiment's script is left out: a new installation of Slurm counts from
        1 again, and every cluster has its own count.
        """
        wanted = set(ids)
        if not wanted:
            return {}
        owner = EventLog(self.directory).owner()
        # all jobs of these users: given ids, squeue lists none where it has forgotten one
        users = ",".join(str(uid) for uid in {os.getuid(), os.getuid() if owner is None else owner})
        listed = ask("squeue", "-h", "-r", "-t", "all", "-u", users, "-o", "%i|%T|%r|%o")
        if listed is None:
            raise NoAnswer("Slurm does not answer here (squeue): try again later, or from a login node")
        found, others = {}, set[str]()
        for line in listed.splitlines():
            id, word, reason, script = (*line.split("|", 3), "", "", "")[:4]
            if id not in wanted:
                continue
            if self._is_ours(script):
                found[id] = job_state(word, reason if reason != "None" else "")
            else:
                others.add(id)
        if forgotten := wanted - found.keys() - others:
            found |= _ended(forgotten, users)
        return found

    def _is_ours(self, script: str) -> bool:
        """True for a script in this experiment's folder, whose whole path may look otherwise from another machine."""
        return script in ("", "(null)") or f"/{self.directory.resolve().name}/jobs/" in script

    def cancel(self, ids: Collection[str]) -> None:
        if ids and ask("scancel", *ids) is None:
            raise UserError(f"Slurm did not cancel {', '.join(ids)}: try scancel yourself.")

    def names(self, ids: Iterable[str]) -> list[str]:
        return batch.arrays(ids)

    @classmethod
    def allocation(cls) -> ThisJob | None:
        if "SLURM_JOB_ID" not in os.environ:
            return None
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        id = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
        return ThisJob(id, int(os.environ.get("SLURM_RESTART_COUNT") or 0))

    @classmethod
    def job_variables(cls) -> list[str]:
        if "SLURM_JOB_ID" not in os.environ:
            return []
        theirs = (name for name in os.environ if name.startswith(OF_A_JOB) or name in OF_A_TASK)
        return [name for name in theirs if name != "SLURM_CONF"]

    @classmethod
    def allotted_cores(cls) -> int | None:
        allotted = os.environ.get("SLURM_CPUS_ON_NODE", "") if "SLURM_JOB_ID" in os.environ else ""
        return int(allotted) if allotted.isdigit() else None

    def this_job(self) -> ThisJob | None:
        return self.allocation() if super().this_job() else None

    def ending(self, job: ThisJob) -> Ending | None:
        """The outcome of this run where Slurm is ending it, None elsewhere; a time limit, too, ends a job for good."""
        listed = ask("squeue", "-h", "-t", "all", "-j", job.id, "-O", "State:20,RestartCnt:20")
        word, count = (*(listed or "").split(), "", "")[:2]
        if listed is None or word == "RUNNING":
            return None
        return Ending.requeued if not count.isdigit() or int(count) > job.restart else Ending.cancelled

    def requeue(self, id: str, delay: float = 0.0) -> bool:
        for pause in REQUEUE_PAUSES:
            if ask("scontrol", "requeue", id) is not None:
                break
            time.sleep(pause)  # the controller may be busy preempting many jobs
        else:
            return False
        # Slurm itself waits until a node can take the job again; an earlier start would end the job
        start = ask("squeue", "-h", "-t", "all", "-j", id, "-o", "%S")
        if start is not None and datetime.now() + timedelta(seconds=delay) > _time(start):
            ask("scontrol", "update", f"JobId={id}", f"StartTime=now+{round(delay)}")
        return True

    def is_time_up(self, config: Config, id: str) -> bool:
        return self.seconds_left(id) < config.launcher.slurm.warning_seconds + SLACK_SECONDS

    def seconds_left(self, id: str) -> float:
        """Seconds until a job's time limit; infinite where it has none or Slurm does not answer."""
        listed = ask("squeue", "-h", "-j", id, "-o", "%L") or ""
        days, _, clock = listed.strip().rpartition("-")
        try:
            parts = [int(part) for part in clock.split(":")]
            return 86400 * int(days or 0) + sum(60**place * part for place, part in enumerate(reversed(parts)))
        except ValueError:  # UNLIMITED, NOT_SET, INVALID
            return math.inf


def job_state(word: str, reason: str = "") -> JobState:
    """The state that Slurm calls `word`, such as `RUNNING` or `CANCELLED by 0`."""
    return JobState(PHASES.get(word.partition(" ")[0], Phase.ended), word, reason)


def _ended(ids: Collection[str], users: str) -> dict[str, JobState]:
    """Id → state of ended jobs, from the accounting database where the cluster has one.

    Leaves out jobs that the database has as running: it missed their end, since squeue no longer lists them.
    """
    listed = ask("sacct", "-n", "-P", "-X", "-u", users, "-j", ",".join(sorted(ids)), "-o", "JobID,State")
    rows = (line.split("|") for line in (listed or "").splitlines())
    known = {row[0]: job_state(row[1].split()[0]) for row in rows if len(row) == 2 and row[0] in ids and row[1].strip()}
    return {id: state for id, state in known.items() if state.has_ended}


def _time(printed: str) -> datetime:
    """The earliest start that squeue printed; long ago for `N/A`, which a job has that only waits for a node."""
    with suppress(ValueError):
        return datetime.fromisoformat(printed.strip())
    return datetime.min
