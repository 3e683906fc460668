"""What Slurm says of our jobs, and what it is asked to do with them.

Only its own commands are used, and none of them need be there: where nobody can be asked, nothing is known.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

SLURM = "slurm"  # how the event log names it
REQUEUED, CANCELLED = "requeued", "cancelled"
REQUEUE_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds
PATIENCE = 5.0  # seconds between two questions of one watcher
TIMEOUT = 30.0  # seconds for one command; a controller that is restarting answers late
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
SUSPENDED = {"SUSPENDED", "STOPPED"}  # somebody, or Slurm for another job, has frozen its processes
RUNNING = {"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"} | SUSPENDED
# a user's habits: read by Slurm's commands as if they were options, they would filter or rearrange what these answer
HABITS = re.compile(r"(SQUEUE|SACCT|SCONTROL|SINFO|SCANCEL)_")
NO_ANSWER = re.compile(
    r"unable to contact|timed out|has not answered|zero bytes were transmitted|connection refused|standby mode"
    r"|unable to establish|communication connection failure|temporarily un",
    re.IGNORECASE,
)


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
    def is_suspended(self) -> bool:
        return self.state in SUSPENDED

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


def jobs(ids: Iterable[str], experiment: Path, owner: int | None = None) -> dict[str, Job] | None:
    """Id → job, of those of `ids` that are `experiment`'s and that Slurm remembers; null where it cannot be asked.

    What has one of the ids but another experiment's script is not ours: Slurm counts anew when it is installed anew,
    and each of several clusters counts for itself. `owner`: the user (uid) whose jobs they may be, beside this
    process's.
    """
    wanted = set(ids)
    if not wanted:
        return {}
    # all of a user's jobs: asked for one that it has forgotten, squeue says nothing of the others either
    user = ",".join(str(uid) for uid in {os.getuid(), os.getuid() if owner is None else owner})
    listed = _ask("squeue", "-h", "-r", "-t", "all", "-u", user, "-o", "%i|%T|%r|%o")
    if listed is None:
        return None
    found, strange = {}, set[str]()
    for line in listed.splitlines():
        name, state, reason, script = (*line.split("|", 3), "", "", "")[:4]
        if name not in wanted:
            continue
        if _is_of(experiment, script):
            found[name] = Job(state, reason if reason != "None" else "")
        else:
            strange.add(name)
    if forgotten := wanted - found.keys() - strange:
        found |= _remembered(forgotten, user)
    return found


def _is_of(experiment: Path, script: str) -> bool:
    """Whether the script lies where that experiment's lie. Its whole path may look otherwise from another machine."""
    return script in ("", "(null)") or f"/{experiment.resolve().name}/jobs/" in script


def _remembered(ids: Collection[str], user: str) -> dict[str, Job]:
    """Ended jobs, from the accounting data base where the cluster has one.

    What that does not call ended is left out: it was not told the end of what squeue does not list any more.
    """
    listed = _ask("sacct", "-n", "-P", "-X", "-u", user, "-j", ",".join(sorted(ids)), "-o", "JobID,State")
    rows = (line.split("|") for line in (listed or "").splitlines())
    told = {row[0]: Job(row[1].split()[0]) for row in rows if len(row) == 2 and row[0] in ids and row[1].strip()}
    return {name: job for name, job in told.items() if job.has_ended}


def ending(here: ThisJob) -> str | None:
    """How Slurm is ending this run of a job by itself: `REQUEUED`, to start it again, or `CANCELLED`, for good.

    None where it does not. A run that has reached its time limit is ended for good as well.
    """
    told = _ask("squeue", "-h", "-t", "all", "-j", here.id, "-O", "State:20,RestartCnt:20")
    state, count = (*(told or "").split(), "", "")[:2]
    if told is None or state == "RUNNING":
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
    if told is not None and datetime.now() + timedelta(seconds=delay) > _time(told):
        _ask("scontrol", "update", f"JobId={job}", f"StartTime=now+{round(delay)}")
    return True


def _time(printed: str) -> datetime:
    """When Slurm lets a job start, as it prints it; long ago for `N/A`: it waits for a place alone."""
    with suppress(ValueError):
        return datetime.fromisoformat(printed.strip())
    return datetime.min


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


def is_no_answer(said: str) -> bool:
    """Whether what a command of Slurm said is that the controller cannot be reached, and no word of that."""
    return bool(NO_ANSWER.search(said))


@lru_cache(maxsize=8)
def _recent(ids: frozenset[str], experiment: Path, owner: int | None, period: int) -> dict[str, Job] | None:
    return jobs(ids, experiment, owner)


def recent_jobs(ids: Iterable[str], experiment: Path, owner: int | None = None) -> dict[str, Job] | None:
    """`jobs` as of the last seconds: for those who look again and again."""
    return _recent(frozenset(ids), experiment, owner, int(time.monotonic() / PATIENCE))


def _ask(*command: str) -> str | None:
    """What the command prints; null where it is not there or fails."""
    try:
        done = _run(*command)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not HABITS.match(name)}
    environment = {**kept, "SLURM_TIME_FORMAT": "standard"}
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
