"""The event log of an experiment: an append-only list of the states that its cells entered."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.storage import cell_states, metrics_log

KINDS = {"time": str, "cell": str, "state": str, "attempt": int, "job": str, "reason": str}  # of every record
COMPARISON = "comparison"  # the job that compares the cells, recorded like a cell


@dataclass(frozen=True)
class Entry:
    """One event of a cell."""

    state: str
    attempt: int
    job: str
    reason: str
    scheduler: str = ""  # the queue that has the job; empty for a launcher's process
    restart: int = 0  # earlier starts of the job by its scheduler

    @property
    def queued_as(self) -> tuple[str, str]:
        """The scheduler and its id of the job, which only together name one: process ids and job ids coincide."""
        return self.scheduler, self.job

    @property
    def is_open(self) -> bool:
        """True where another event must follow."""
        return self.state in cell_states.OPEN


def refuse_older(experiment_dir: Path) -> None:
    """Raise `UserError` for a directory of an older version, whose files had other names."""
    for name in ("manifest.jsonl", "*/seed=*/ledger.jsonl"):
        for path in experiment_dir.glob(name):
            raise UserError(
                f"{experiment_dir} was written by an older version (it has {path.relative_to(experiment_dir)}), which "
                "this one cannot read: use that version, or train anew under another name=...."
            )


class EventLog:
    """`events.jsonl` of one experiment. Workers and launchers append; nobody rewrites."""

    def __init__(self, experiment_dir: Path) -> None:
        self.path = experiment_dir / "events.jsonl"

    def append(self, cell: str, state: str, *, attempt: int, job: str = "", reason: str = "", **more: Any) -> None:
        """Record that `cell` (`<arm>/seed=<k>`) entered a state of `cell_states.STATES`.

        `more`: the `scheduler` that queues the job and `restart`, its earlier starts; for `running` the `environment`;
        for `crashed` the step of the newest checkpoint, `saved`. Raises `UserError` where the disk refuses, and
        `ValueError` for a state that the table does not have. Warns, after writing, of one that cannot come next.
        """
        if state not in cell_states.STATES:
            raise ValueError(f"'{state}' is not a state of a cell: {', '.join(cell_states.STATES)}")
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": time, "cell": cell, "state": state, "attempt": attempt, "job": job, "reason": reason}
        metrics_log.append(self.path, record | {key: value for key, value in more.items() if value not in (None, "")})
        with suppress(OSError, ValueError, KeyError, TypeError):  # a broken line, which all who read the log report
            _in_order(self._written_of(cell))

    def last(self) -> dict[str, Entry]:
        """The newest event of every cell that has one."""
        return {r["cell"]: _entry(r) for r in self._records() if r["cell"] != COMPARISON}

    def open(self) -> dict[str, Entry]:
        """The newest event of every cell, and of the comparison, whose job a queue has or should have."""
        newest = {r["cell"]: _entry(r) for r in self._records()}
        return {cell: entry for cell, entry in newest.items() if entry.scheduler and entry.is_open}

    def comparison(self) -> Entry | None:
        """The newest event of the job that compares; None where none was submitted."""
        return next((_entry(r) for r in reversed(self._records()) if r["cell"] == COMPARISON), None)

    def owner(self) -> int | None:
        """The user (uid) who launched the experiment; None before that."""
        return self.path.stat().st_uid if self.path.exists() else None

    def of(self, cell: str) -> list[metrics_log.Record]:
        """The events of `cell`, in order."""
        return [r for r in self._records() if r["cell"] == cell]

    def events(self) -> list[metrics_log.Record]:
        """All events, in order."""
        return list(self._records())

    def cell_of(self, job: str) -> str | None:
        """The cell that a queue's job runs; None for a job of another experiment."""
        return next((r["cell"] for r in reversed(self._records()) if r["job"] == job and r.get("scheduler")), None)

    def counted(self, state: str) -> Counter[str]:
        """Cell → the number of times that it entered `state`."""
        return Counter(r["cell"] for r in self._records() if r["state"] == state)

    def preemptions(self) -> Counter[str]:
        """Cell → the number of times that its scheduler preempted and restarted it, not counting a final cancel."""
        before, counts = dict[str, str](), Counter[str]()
        for record in self._records():
            cell, state = record["cell"], record["state"]
            counts[cell] += state == "running" and before.get(cell) == "preempted"
            before[cell] = state
        return counts

    def first_done(self) -> str | None:
        """The time at which the first cell was done (UTC); None where none is."""
        return min((r["time"] for r in self._records() if r["state"] == "done"), default=None)

    def environments(self) -> dict[str, list[dict[str, Any]]]:
        """Cell → the environment of each of its attempts (`environment.environment`), with `attempt`, `since` (UTC)."""
        found: dict[str, list[dict[str, Any]]] = {}
        for record in self._records():
            if isinstance(where := record.get("environment"), dict):
                begun = {"attempt": record["attempt"], "since": record["time"]}
                found.setdefault(record["cell"], []).append(begun | where)
        return found

    def _written_of(self, cell: str) -> list[metrics_log.Record]:
        """Every event of `cell`; cheap, since a launch appends one for each of a thousand cells."""
        name = json.dumps(cell)[1:-1].encode()
        records = map(json.loads, (line for line in self.path.read_bytes().split(b"\n") if name in line))
        return [record for record in records if record["cell"] == cell]

    def _records(self) -> list[metrics_log.Record]:
        """Every event but the late ones. Raises `UserError` where a key is missing or has another type."""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return []
        return _checked(self.path, now.st_size, now.st_mtime_ns)


@lru_cache(maxsize=4)  # every cell's status reads the whole log
def _checked(path: Path, size: int, written: int) -> list[metrics_log.Record]:
    """The events, without those that a superseded attempt appended late. Size and time are the cache's key."""
    records = metrics_log.read(path)
    for record in records:
        for key, kind in KINDS.items():
            if key not in record:
                raise UserError(f"{path} has a record without '{key}': delete that line.")
            if not isinstance(record[key], kind):
                raise UserError(
                    f"{path} has a record whose {key} is {record[key]!r:.40}, not {kind.__name__}: delete that line."
                )
    return _in_order(records)


def _in_order(records: list[metrics_log.Record]) -> list[metrics_log.Record]:
    """The records without the late ones. Warns of a state that cannot follow the one before it."""
    found, begun, states = [], dict[str, int](), dict[str, str]()  # cell → its last attempt that ran, its state
    for record in records:
        cell, state = record["cell"], record["state"]
        if record["attempt"] < begun.get(cell, 0):
            continue
        if state == "running":
            begun[cell] = record["attempt"]
        cell_states.check(cell, states.get(cell), state)
        states[cell] = state
        found.append(record)
    return found


def _entry(record: metrics_log.Record) -> Entry:
    beside = {key: record[key] for key in ("scheduler", "restart") if key in record}
    return Entry(record["state"], record["attempt"], record["job"], record["reason"], **beside)
