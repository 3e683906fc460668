"""The cells of an experiment as their files and locks show them, read anew at every call, and cheaply."""

from __future__ import annotations

import math
import os
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import islice, pairwise
from pathlib import Path

import yaml

from orchestrator.common.errors import UserError, no_experiment
from orchestrator.monitoring.reading import Newest, newest
from orchestrator.monitoring.states import Sight, is_open, state_of
from orchestrator.schedulers.slurm import Job, jobs, recent_jobs
from orchestrator.storage import lease, metrics_log
from orchestrator.storage.event_log import COMPARISON, Entry, EventLog
from orchestrator.storage.locks import is_held
from orchestrator.storage.steps import step_in

RECENT, FURTHEST = 8, 200  # newest records that are enough to see where the loss goes, and the most that are read
UNASKED = "is as the event log has it: Slurm does not answer here (squeue)"
COMPARES = "the same command compares, and so does --resume"
LOG_LINES, LOG_BYTES = 6, 8192  # of a log that are shown
MACHINERY = re.compile(r"submitit (INFO|WARNING|ERROR) |srun: |slurmstepd|slurm_script: ")  # what it says of itself
_SEED = re.compile(r"^seed: \d+$", re.MULTILINE)


@dataclass(frozen=True)
class Plan:
    """What of a cell's configuration is needed to follow it."""

    steps: int
    read_every: int  # steps
    arms: tuple[str, ...]  # of its experiment, in order


@dataclass(frozen=True)
class CellStatus:
    """One cell, as it was found at the time `seen`."""

    cell: str  # <arm>/seed=<k>
    state: str  # a key of `view.STATES`
    attempt: int = 0
    job: str = ""
    preempted: int = 0  # how often its scheduler took it off and will start, or has started, it again
    deaths: int = 0  # how often its process died
    waits: str = ""  # for what its job waits, or that nobody can be asked
    log: tuple[str, ...] = ()  # the last lines that it wrote, where it ended badly
    reason: str = ""  # the event log's last word on it
    plan: Plan | None = None  # null where its configuration cannot be read
    records: list[metrics_log.Record] = field(default_factory=list)  # the newest of its metrics log
    written: float | None = None  # when its metrics log was last written, seconds since the epoch
    reading: Newest | None = None  # the newest
    saved: frozenset[int] = frozenset()  # steps of the checkpoints on disk
    read: frozenset[int] = frozenset()  # and of the readings
    aside: tuple[str, ...] = ()  # checkpoints that were set aside
    broken: tuple[str, ...] = ()  # a sentence on each file that cannot be read
    seen: float = 0.0  # seconds since the epoch

    @property
    def step(self) -> int:
        return self.records[-1]["step"] if self.records else 0

    @property
    def steps(self) -> int:
        """Its last step; 0 where that is not known."""
        return self.plan.steps if self.plan else 0

    @property
    def share(self) -> float:
        """How much of it is done, 0…1."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0

    @property
    def losses(self) -> list[float]:
        """The newest training losses, nats/token."""
        return [x for r in self.records if isinstance(x := r.get("loss"), float) and math.isfinite(x)][-RECENT:]

    @property
    def loss(self) -> float | None:
        return self.losses[-1] if self.losses else None

    @property
    def heldout(self) -> float | None:
        """Mean over domains of the newest held-out loss, nats/token."""
        return next((statistics.fmean(r["heldout"].values()) for r in self.records[::-1] if r.get("heldout")), None)

    @property
    def left(self) -> float | None:
        """Seconds to its last step, at the pace so far; null unless it is running."""
        if self.state != "running" or not self.step:
            return None
        seconds: float = self.records[-1]["seconds"]
        return seconds / self.step * max(0, self.steps - self.step)

    @property
    def interval(self) -> float | None:
        """The longest time between two of the newest records, seconds; null where there are not two."""
        return max((b["seconds"] - a["seconds"] for a, b in pairwise(self.records)), default=None)


def experiment_lock(experiment_dir: Path) -> Path:
    """The file whose lock a launcher holds."""
    return experiment_dir / ".lock"


@cache
def plan_of(cell_dir: Path) -> Plan:
    """What a status needs of its configuration, which does not change. Raises `ValueError` where it is not there."""
    try:
        return _plan_in(_SEED.sub("", (cell_dir / "config.yaml").read_text()))
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=256)  # the cells of an arm differ in their seed alone, and YAML is slow
def _plan_in(text: str) -> Plan:
    content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # libyaml where it is there
    arms = tuple(map(str, content["arms"]))
    return Plan(int(content["train"]["steps"]), int(content["forensics"]["every"]), arms)


def read_status(experiment_dir: Path) -> list[CellStatus]:
    """The status of every cell, in the order of the experiment.

    Raises `UserError` where the directory holds no experiment or its event log cannot be read.
    """
    cells = _cell_dirs(experiment_dir)
    if not cells:
        raise UserError(no_experiment(experiment_dir))
    events = EventLog(experiment_dir)
    last = events.last()
    cells |= {cell: experiment_dir / cell for cell in last if cell not in cells}  # whose directories are gone
    told = _written(events.path)
    claims = {cell: lease.newest(path) for cell, path in cells.items() if is_open(last.get(cell))}
    held = {cell for cell, claim in claims.items() if claim and claim.is_alive()}
    launching = bool(is_held(experiment_lock(experiment_dir)))
    known = _jobs(events, last)
    if any(is_open(last.get(cell)) and cell not in held for cell in cells):
        last = events.last()  # a process leaves its last word before its claim: what it has said since counts
    preempted, deaths = events.preemptions(), events.counted("crashed")
    found = []
    for cell, path in cells.items():
        entry, claim = last.get(cell), claims.get(cell)
        job = known.get(entry.job) if entry and known else None
        sight = Sight(cell in held, bool(claim and claim.is_stale()), launching, job, asked=known is not None)
        state = state_of(entry, sight) if path.is_dir() else "missing"
        if state == "zombie" and not sight.stale:  # what was seen one after another may only seem to disagree
            entry, sight = _looked_again(events, cell, path, sight)
            state = state_of(entry, sight)
        status = status_of(path, entry, state, told)
        waits = f"its job waits: {job.reason}" if job and job.is_waiting and job.reason else ""
        if is_open(entry) and not sight.asked:
            waits = UNASKED
        times = preempted.get(cell, 0) + (state == "preempted")
        died = deaths.get(cell, 0)
        why = _why_lost(entry, job) if entry and state == "lost" else status.reason
        log = status.log if died or state == "lost" or len(status.log) > 1 else ()  # its reason says it all
        found.append(replace(status, reason=why, log=log, preempted=times, deaths=died, waits=waits))
    return found


def _why_lost(entry: Entry, job: Job | None) -> str:
    """What is known of a cell whose process is gone."""
    if entry.state == "submitted" and job is not None:
        return f"its job ended ({job.state}) before the cell began, perhaps in launcher.slurm.setup"
    return entry.reason if entry.state == "crashed" else "its process is gone (killed, or its machine is down)"


def read_comparison(experiment_dir: Path) -> str:
    """Where the job stands that compares the cells when they have ended; empty where none was submitted."""
    events = EventLog(experiment_dir)
    entry = events.comparison()
    if entry is None:
        return ""
    known = _jobs(events, {COMPARISON: entry})
    if (now := events.comparison()) is not None and now != entry:  # what was said meanwhile counts
        entry, known = now, _jobs(events, {COMPARISON: now})
    if not is_open(entry):
        return f"{entry.state}{f': {entry.reason}' if entry.reason else ''}"
    if known is None:
        word = "running" if entry.state == "running" else "queued"
        return f"{word} (job {entry.job}), as the event log has it: Slurm does not answer here (squeue)"
    job = known.get(entry.job)
    if job is None:
        return f"lost: Slurm does not know job {entry.job} any more; {COMPARES}"
    if job.has_ended:
        return f"lost: job {entry.job} ended as {job.state} (jobs/{entry.job}_0_log.err); {COMPARES}"
    word = "suspended" if job.is_suspended else "queued" if job.is_waiting else "running"
    return f"{word} (job {entry.job})"


def _looked_again(events: EventLog, cell: str, path: Path, sight: Sight) -> tuple[Entry | None, Sight]:
    """The scheduler asked anew, then whether the process still lives, then its last word."""
    name, root = _job_of(events, cell), events.path.parent
    job = (jobs([name], root, events.owner()) or {}).get(name) if name else None
    held = lease.is_held(path)
    return events.last().get(cell), replace(sight, job=job, held=held)


def _job_of(events: EventLog, cell: str) -> str:
    entry = events.last().get(cell)
    return entry.job if entry else ""


def _jobs(events: EventLog, last: dict[str, Entry]) -> dict[str, Job] | None:
    """What the scheduler knows of the jobs of open cells; null where it cannot be asked."""
    theirs = {entry.job for entry in last.values() if entry.scheduler and is_open(entry)}
    return recent_jobs(theirs, events.path.parent, events.owner())


def status_of(cell_dir: Path, entry: Entry | None, state: str, told: float | None = None) -> CellStatus:
    """What the files of one cell say. Any of them may be missing, or vanish while it is looked at.

    `told`: when the event log was last written to; an attempt that has just begun has not been silent since the last.
    """
    broken: list[str] = []
    checkpoints = _names(cell_dir / "checkpoints")
    read = _steps(_names(cell_dir / "forensics"))
    plan, records, reading = None, [], None
    try:
        plan = plan_of(cell_dir)
    except ValueError as error:
        if state != "missing":
            broken.append(f"config.yaml cannot be read ({error}): restore it.")
    try:
        records = recent_records(cell_dir / "metrics.jsonl")
    except ValueError as error:
        broken.append(f"The end of metrics.jsonl cannot be read ({error}): restore or delete that line.")
    try:
        reading = newest(cell_dir, read)
    except FileNotFoundError:
        pass  # a resumed run has just set it aside
    except (OSError, ValueError) as error:
        again = f"python -m orchestrator.forensics {cell_dir} --json FILE writes it again"
        broken.append(f"The reading of step {max(read)} cannot be read ({error}): {again}.")
    return CellStatus(
        cell=f"{cell_dir.parent.name}/{cell_dir.name}",
        state=state,
        attempt=entry.attempt if entry else 0,
        job=entry.job if entry else "",
        log=_log_of(cell_dir.parents[1] / "jobs", entry.job) if entry and state in ("failed", "lost") else (),
        reason=entry.reason if entry else "",
        plan=plan,
        records=records,
        written=max(filter(None, (_written(cell_dir / "metrics.jsonl"), told)), default=None),
        reading=reading,
        saved=_steps(checkpoints),
        read=read,
        aside=tuple(sorted(name for name in checkpoints if ".damaged-" in name)),
        broken=tuple(broken),
        seen=time.time(),
    )


def recent_records(path: Path) -> list[metrics_log.Record]:
    """The newest records in order: `RECENT` of them, or more, until one of them has held-out losses.

    None where there is no file. Raises `ValueError` where what is there is no metrics log.
    """
    records: list[metrics_log.Record] = []
    with suppress(FileNotFoundError):
        for record in islice(metrics_log.backwards(path), FURTHEST):
            if not (isinstance(record.get("step"), int) and isinstance(record.get("seconds"), int | float)):
                raise ValueError("a record has no step or no time")
            records.append(record)
            if len(records) >= RECENT and any("heldout" in seen for seen in records):
                break
    return records[::-1]


def _log_of(folder: Path, job: str) -> tuple[str, ...]:
    """The last lines of a job's log; none where there is no such file."""
    try:
        with (folder / f"{job}_0_log.err").open("rb") as file:
            file.seek(-min(file.seek(0, os.SEEK_END), LOG_BYTES), os.SEEK_END)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ()
    telling = [line.rstrip() for line in lines if line.strip() and not MACHINERY.match(line)][-LOG_LINES:]
    return (f"jobs/{job}_0_log.err {'ends:' if telling else 'says nothing of it'}", *telling)


def _cell_dirs(experiment_dir: Path) -> dict[str, Path]:
    """Cell → its directory, in the order in which they were planned."""
    found = [p.parent for p in experiment_dir.glob("*/seed=*/config.yaml") if p.parent.name[5:].lstrip("-").isdigit()]
    arms = next(_known_arms(found), ())
    rank = {arm: position for position, arm in enumerate(arms)}
    found.sort(key=lambda p: (rank.get(p.parent.name, len(rank)), p.parent.name, int(p.name[5:])))
    return {f"{path.parent.name}/{path.name}": path for path in found}


def _known_arms(cell_dirs: list[Path]) -> Iterator[tuple[str, ...]]:
    for path in cell_dirs:
        try:
            yield plan_of(path).arms
        except ValueError:  # it will be said of the cell
            continue


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except OSError:  # not there yet
        return []


def _steps(names: list[str]) -> frozenset[int]:
    return frozenset(step for name in names if (step := step_in(name.removesuffix(".json"))) is not None)


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
