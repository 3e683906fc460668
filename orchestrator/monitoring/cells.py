"""The status of an experiment's cells, read from their files and locks at every call."""

from __future__ import annotations

import math
import os
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import islice, pairwise
from pathlib import Path

import yaml

from orchestrator.common.errors import UserError, no_experiment
from orchestrator.config.load import SEED, plain_yaml
from orchestrator.experiments.due import Due, intervention_steps_of, reading_steps_of
from orchestrator.monitoring.newest_reading import Newest, newest
from orchestrator.monitoring.states import Evidence, reason_of_loss, state_of
from orchestrator.schedulers import is_own_line, job_states, log_of, of_entry
from orchestrator.schedulers.scheduler import JobState, NoAnswer, Phase
from orchestrator.storage import lease, locks, metrics_log, steps
from orchestrator.storage.event_log import Entry, EventLog, refuse_older

RECENT, FURTHEST = 8, 200  # newest records that show the trend of the loss, and the most that are read
PATIENCE = 5.0  # seconds between two queries of a queue
COMPARES = "to compare, repeat the experiment's command, or status --resume"
LOG_LINES, LOG_BYTES = 6, 8192  # of a log, at most, that are shown


@dataclass(frozen=True)
class Plan:
    """The part of a cell's configuration that its status needs."""

    steps: int
    readings: Due  # the steps whose checkpoints are read
    interventions: Due | None  # the steps whose checkpoints are intervened on; None: none
    arms: tuple[str, ...]  # of its experiment, in order
    begins: int = 0  # the step of its trunk at which a branch begins


@dataclass(frozen=True)
class CellStatus:
    """One cell, as it was found at the time `seen`."""

    cell: str  # <arm>/seed=<k>
    state: str  # a key of `states.SHOWN`
    attempt: int = 0
    job: str = ""
    preempted: int = 0  # preemptions
    deaths: int = 0  # deaths of its process
    waits: str = ""  # the reason why its job waits, or that its queue does not answer
    log: tuple[str, ...] = ()  # the last lines of its log, where it ended badly
    reason: str = ""  # of its newest event
    plan: Plan | None = None  # None where its configuration cannot be read
    records: list[metrics_log.Record] = field(default_factory=list)  # the newest of its metrics log
    written: float | None = None  # when its metrics log was last written, seconds since the epoch
    reading: Newest | None = None  # the newest
    saved: frozenset[int] = frozenset()  # steps of the checkpoints on disk
    read: frozenset[int] = frozenset()  # of the readings
    intervened: frozenset[int] = frozenset()  # and of the interventions
    aside: tuple[str, ...] = ()  # checkpoints that were set aside
    broken: tuple[str, ...] = ()  # a sentence on each file that cannot be read
    seen: float = 0.0  # seconds since the epoch

    @property
    def step(self) -> int:
        return self.records[-1]["step"] if self.records else 0

    @property
    def steps(self) -> int:
        """The number of steps to train; 0 where that is not known."""
        return self.plan.steps if self.plan else 0

    @property
    def share(self) -> float:
        """The share of its steps that are done, 0…1."""
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
        """Seconds to its last step, at the pace so far; None unless it is running and has made a step of its own."""
        done = self.step - (self.plan.begins if self.plan else 0)
        if self.state != "running" or done <= 0:
            return None
        seconds: float = self.records[-1]["seconds"]
        return seconds / done * max(0, self.steps - self.step)

    @property
    def interval(self) -> float | None:
        """The longest time between two of the newest records, seconds; None where there are not two."""
        return max((b["seconds"] - a["seconds"] for a, b in pairwise(self.records)), default=None)


def plan_of(cell_dir: Path) -> Plan:
    """The plan of a cell, read again where a launch has extended it. Raises `ValueError` where it cannot be read."""
    path = cell_dir / "config.yaml"
    try:
        return _plan_at(path, path.stat().st_mtime_ns)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


@cache
def _plan_at(path: Path, written: int) -> Plan:
    return _plan_in(SEED.sub("", path.read_text(encoding="utf-8")))


@lru_cache(maxsize=256)  # the cells of an arm differ in their seed alone, and YAML is slow
def _plan_in(text: str) -> Plan:
    content = plain_yaml(text)
    steps, forensics = int(content["train"]["steps"]), content["forensics"]
    every = content.get("interventions", {}).get("every")  # older cells lack the key
    return Plan(
        steps=steps,
        readings=reading_steps_of(steps, int(forensics["every"]), early=bool(forensics.get("early"))),
        interventions=intervention_steps_of(steps, every),
        arms=tuple(map(str, content["arms"])),
        begins=content.get("branch", {}).get("step") or 0,
    )


def read_status(experiment_dir: Path) -> list[CellStatus]:
    """The status of every cell, in the order of the experiment.

    Raises `UserError` where the directory holds no experiment of this version, or its event log cannot be read.
    """
    refuse_older(experiment_dir)
    cells = _cell_dirs(experiment_dir)
    if not cells:
        raise UserError(no_experiment(experiment_dir))
    events = EventLog(experiment_dir)
    last = events.last()
    cells |= {cell: experiment_dir / cell for cell in last if cell not in cells}  # their directories are gone
    events_written = _written(events.path)
    attempts = {cell: lease.newest(path) for cell, path in cells.items() if cell in last and last[cell].is_open}
    held = {cell for cell, attempt in attempts.items() if attempt and attempt.is_alive()}
    launching = bool(locks.is_held(locks.of_launcher(experiment_dir)))
    known, no_answer = _job_states(events)
    if any(entry.is_open and cell not in held for cell, entry in last.items()):
        last = events.last()  # again: a process records its end before it releases the cell
    preempted, deaths = events.preemptions(), events.counted("crashed")
    found = []
    for cell, path in cells.items():
        entry, attempt = last.get(cell), attempts.get(cell)
        job = known.get(entry.queued_as) if entry else None
        evidence = Evidence(cell in held, bool(attempt and attempt.is_stale()), launching, job, not no_answer)
        state = state_of(entry, evidence) if path.is_dir() else "missing"
        if state == "zombie" and not evidence.stale:  # log and queue were read at different times
            entry, evidence = _look_again(events, cell, path, evidence)
            state = state_of(entry, evidence)
        waits = f"its job waits: {job.reason}" if job and job.phase == Phase.waiting and job.reason else ""
        if entry and entry.is_open and no_answer:
            waits = f"is as the event log has it: {no_answer}"
        status = _status_of(path, entry, state, events_written)
        log = status.log if deaths[cell] or state == "lost" or len(status.log) > 1 else ()  # its reason is enough
        reason = reason_of_loss(entry, job) if entry and state == "lost" else status.reason
        times = preempted[cell] + (state == "preempted")
        found.append(replace(status, reason=reason, log=log, preempted=times, deaths=deaths[cell], waits=waits))
    return found


def read_comparison(experiment_dir: Path) -> str:
    """The state of the job that compares the cells when they have ended; empty where none was submitted."""
    events = EventLog(experiment_dir)
    entry = events.comparison()
    known, no_answer = _job_states(events)
    if (now := events.comparison()) != entry:  # recorded meanwhile
        entry, (known, no_answer) = now, _job_states(events)
    if entry is None:
        return ""
    if not entry.is_open:
        return f"{entry.state}{f': {entry.reason}' if entry.reason else ''}"
    if no_answer:
        state = "running" if entry.state == "running" else "queued"
        return f"{state} (job {entry.job}), as the event log has it: {no_answer}"
    job = known.get(entry.queued_as)
    if job is None:
        return f"lost: {of_entry(entry, experiment_dir).title} does not know job {entry.job} any more; {COMPARES}"
    if job.has_ended:
        log = log_of(entry, experiment_dir).relative_to(experiment_dir)
        return f"lost: job {entry.job} ended as {job.word} ({log}); {COMPARES}"
    states = {Phase.suspended: "suspended", Phase.waiting: "queued"}
    return f"{states.get(job.phase, 'running')} (job {entry.job})"


def _look_again(events: EventLog, cell: str, path: Path, evidence: Evidence) -> tuple[Entry | None, Evidence]:
    """The cell's newest event, read after the queue's newest answer and the state of the process."""
    entry, job = events.last().get(cell), None
    with suppress(NoAnswer):
        job = job_states([entry], events.path.parent).get(entry.queued_as) if entry else None
    held = lease.is_held(path)
    return events.last().get(cell), replace(evidence, job=job, held=held)


def _job_states(events: EventLog) -> tuple[dict[tuple[str, str], JobState], str]:
    """`Entry.queued_as` → state of all open jobs, some seconds old at most; and the error of a queue that is silent."""
    entries = frozenset(events.open().values())
    try:
        return _recent_states(entries, events.path.parent, int(time.monotonic() / PATIENCE)), ""
    except NoAnswer as error:
        return {}, str(error)


@lru_cache(maxsize=8)
def _recent_states(entries: frozenset[Entry], experiment_dir: Path, period: int) -> dict[tuple[str, str], JobState]:
    return job_states(entries, experiment_dir)


def _status_of(cell_dir: Path, entry: Entry | None, state: str, events_written: float | None) -> CellStatus:
    """The status of one cell from its files. Any of them may be missing, or vanish while it is read.

    `events_written`: the time at which the event log was last written, so that an attempt that has just begun does not
    count as silent since the one before.
    """
    broken: list[str] = []
    read = frozenset(steps.readings_in(cell_dir))
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
    except OSError as error:
        broken.append(f"The reading of step {max(read)} cannot be read ({error}): make its file readable.")
    except UserError as error:
        broken.append(str(error))
    return CellStatus(
        cell=f"{cell_dir.parent.name}/{cell_dir.name}",
        state=state,
        attempt=entry.attempt if entry else 0,
        job=entry.job if entry else "",
        log=_log_lines(cell_dir.parents[1], entry) if entry and state in ("failed", "lost") else (),
        reason=entry.reason if entry else "",
        plan=plan,
        records=records,
        written=max(filter(None, (_written(cell_dir / "metrics.jsonl"), events_written)), default=None),
        reading=reading,
        saved=frozenset(steps.paths_in(cell_dir / "checkpoints")),
        read=read,
        intervened=frozenset(steps.damages_in(cell_dir)),
        aside=tuple(sorted(path.name for path in cell_dir.glob("checkpoints/step_*.*-*"))),
        broken=tuple(broken),
        seen=time.time(),
    )


def recent_records(path: Path) -> list[metrics_log.Record]:
    """The newest records in order: `RECENT` of them, or more, until one of them has held-out losses.

    Empty where there is no file. Raises `ValueError` where it is not a metrics log.
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


def _log_lines(experiment_dir: Path, entry: Entry) -> tuple[str, ...]:
    """The last lines of the log of an event's job, after its name; empty where there is no such file."""
    path = log_of(entry, experiment_dir)
    try:
        with path.open("rb") as file:
            file.seek(-min(file.seek(0, os.SEEK_END), LOG_BYTES), os.SEEK_END)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ()
    telling = [line.rstrip() for line in lines if line.strip() and not is_own_line(line)][-LOG_LINES:]
    name = path.relative_to(experiment_dir)
    return (f"{name} ends:" if telling else f"{name} holds nothing that the cell wrote", *telling)


def _cell_dirs(experiment_dir: Path) -> dict[str, Path]:
    """Cell → its directory, in the order in which they were planned."""
    found = [p.parent for p in experiment_dir.glob("*/seed=*/config.yaml") if p.parent.name[5:].lstrip("-").isdigit()]
    arms: tuple[str, ...] = ()
    for path in found:
        with suppress(ValueError):  # its status has the reason
            arms = plan_of(path).arms
            break
    rank = {arm: position for position, arm in enumerate(arms)}
    found.sort(key=lambda p: (rank.get(p.parent.name, len(rank)), p.parent.name, int(p.name[5:])))
    return {f"{path.parent.name}/{path.name}": path for path in found}


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
