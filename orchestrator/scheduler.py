"""What Slurm says of our jobs, and what it is asked to do with them.

Only its own commands are used, and none of them need be there: where nobody can be asked, nothing is known.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

SLURM = "slurm"  # how the manifest names it
REQUEUED, CANCELLED = "requeued", "cancelled"
REQUEUE_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds
PATIENCE = 5.0  # seconds between two questions of one watcher
TIMEOUT = 30.0  # seconds for one command; a controller that is restarting answers late
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "RESIZING"}


@dataclass(frozen=True)
class Job:
    """One job, or one task of an array, as its scheduler knows it."""

    state: str  # Slurm's word: PENDING, RUNNING, OUT_OF_MEMORY, …
    reason: str = ""  # why it waits

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    @property
    def is_running(self) -> bool:
        return self.state in RUNNING

    @property
    def has_ended(self) -> bool:
        return not (self.is_waiting or self.is_running)


@dataclass(frozen=True)
class ThisJob:
    """The job that this process is a task of."""

    id: str  # of an array's task: <array>_<task>
    restart: int  # how often it had been started before


def this_job() -> ThisJob | None:
    """The job that this process is a task of; null outside of one.

    A cell that a launcher runs inside somebody's job, in that process or in one of its own, is not that job.
    """
    variables = os.environ.keys()
    alone = "SUBMITIT_DEBUG_JOB_ID" in variables or "SLURM_JOB_ID" not in variables
    if alone or os.environ.get("SUBMITIT_EXECUTOR") != SLURM:
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    return ThisJob(name, int(os.environ.get("SLURM_RESTART_COUNT") or 0))


def jobs(ids: Iterable[str], owner: int | None = None) -> dict[str, Job] | None:
    """Id → job, of those of `ids` that Slurm remembers; null where it cannot be asked.

    `owner`: the user (uid) whose jobs they may be, beside this process's.
    """
    wanted = set(ids)
    if not wanted:
        return {}
    # all of a user's jobs: asked for one that it has forgotten, squeue says nothing of the others either
    user = ",".join(str(uid) for uid in {os.getuid(), os.getuid() if owner is None else owner})
    listed = _ask("squeue", "-h", "-r", "-t", "all", "-u", user, "-o", "%i|%T|%r")
    if listed is None:
        return None
    found = {}
    for line in listed.splitlines():
        name, state, reason = (*line.split("|", 2), "", "")[:3]
        if name in wanted:
            found[name] = Job(state, reason if reason != "None" else "")
    if forgotten := wanted - found.keys():
        found |= _remembered(forgotten)
    return found


def _remembered(ids: Collection[str]) -> dict[str, Job]:
    """Ended jobs, from the accounting data base where the cluster has one."""
    listed = _ask("sacct", "-n", "-P", "-X", "-j", ",".join(ids), "-o", "JobID,State")
    rows = (line.split("|") for line in (listed or "").splitlines())
    return {row[0]: Job(row[1].split()[0]) for row in rows if len(row) == 2 and row[0] in ids and row[1]}


def ending(here: ThisJob) -> str | None:
    """How Slurm is ending this run of a job by itself: `REQUEUED`, to start it again, or `CANCELLED`, for good.

    None where it does not. A run that has reached its time limit is ended for good as well.
    """
    told = _ask("squeue", "-h", "-t", "all", "-j", here.id, "-O", "State:20,RestartCnt:20")
    state, count = (*(told or "").split(), "", "")[:2]
    if not state or state == "RUNNING":
        return None
    return REQUEUED if not count.isdigit() or int(count) > here.restart else CANCELLED


def seconds_left(job: str) -> float:
    """Before its time limit; infinite where it has none, or nobody can be asked."""
    told = _ask("squeue", "-h", "-j", job, "-o", "%L") or ""
    days, _, clock = told.strip().rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        return 86400 * int(days or 0) + sum(60**place * part for place, part in enumerate(reversed(parts)))
    except ValueError:  # UNLIMITED, NOT_SET, INVALID
        return math.inf


def is_ending(job: str) -> bool:
    """Whether Slurm is ending this run of `job` by itself: cancelled, or requeued by somebody."""
    told = _ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")
    return told is not None and told.strip() != "RUNNING"


def requeue(job: str, delay: float = 0.0) -> bool:
    """Have Slurm end this run of `job` and start it again, not before `delay` seconds; whether it will."""
    for pause in REQUEUE_PAUSES:
        if _ask("scontrol", "requeue", job) is not None:
            break
        time.sleep(pause)  # a controller that has many jobs to preempt at once
    else:
        return False
    # Slurm waits by itself until a node takes the same job again; to start it sooner would end it
    told = _ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%S")
    with suppress(ValueError):
        if told is None or datetime.now() + timedelta(seconds=delay) > datetime.fromisoformat(told.strip()):
            _ask("scontrol", "update", f"JobId={job}", f"StartTime=now+{round(delay)}")
    return True


def cancel(ids: Sequence[str]) -> bool:
    """Have Slurm end jobs; whether it will. Those that have ended are no error."""
    return not ids or _ask("scancel", *ids) is not None


def refusal(script: Path) -> str | None:
    """Why Slurm would not take the batch script, in its own words; null where it would."""
    try:
        done = _run("sbatch", "--test-only", str(script))
    except subprocess.TimeoutExpired:
        return f"it has not answered for {TIMEOUT:.0f} s"
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    said = " ".join(done.stderr.replace("sbatch: error:", "").replace("allocation failure:", "").split())
    if done.returncode == 0:
        return None
    if "partition" in said and (names := _ask("sinfo", "-h", "-o", "%R")):
        said += f"; there are {', '.join(sorted(set(names.split())))}"
    return said or f"sbatch ended with {done.returncode}"


@lru_cache(maxsize=8)
def _recent(ids: frozenset[str], owner: int | None, period: int) -> dict[str, Job] | None:
    return jobs(ids, owner)


def recent_jobs(ids: Iterable[str], owner: int | None = None) -> dict[str, Job] | None:
    """`jobs` as of the last seconds: for those who look again and again."""
    return _recent(frozenset(ids), owner, int(time.monotonic() / PATIENCE))


def _ask(*command: str) -> str | None:
    """What the command prints; null where it is not there or fails."""
    try:
        done = _run(*command)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
