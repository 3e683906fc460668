"""What became of every cell of an experiment: an append-only list of its states."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.storage import metrics_log

KINDS = {"time": str, "cell": str, "state": str, "attempt": int, "job": str, "reason": str}  # of every record
COMPARISON = "comparison"  # the job that follows the cells, recorded as if it were one
OPEN = ("submitted", "running", "preempted", "crashed")  # states that another one must follow


@dataclass(frozen=True)
class Entry:
    """The last word on a cell."""

    state: str
    attempt: int
    job: str
    reason: str
    scheduler: str = ""  # that the job belongs to; empty for processes of a launcher
    restart: int = 0  # how often the scheduler had started the job before


class EventLog:
    """`events.jsonl` of one experiment. Cells and launcher append; nobody rewrites."""

    def __init__(self, experiment_dir: Path) -> None:
        self.path = experiment_dir / "events.jsonl"

    def append(
        self,
        cell: str,
        state: str,
        *,
        attempt: int,
        job: str = "",
        reason: str = "",
        **more: Any,
    ) -> None:
        """Record that `cell` (`<arm>/seed=<k>`) entered `state`, and what `more` there is to say.

        `state`: one of `OPEN`, or done, failed, stopped, which need not be followed by another.
        `scheduler`: whose job it is, and `restart`: how often that had been started before; `environment`: of
        `running`, where; `saved`: of `crashed`, the newest checkpoint.
        """
        time = datetime.now(UTC).isoformat(timespec="seconds")
        record = {
            "time": time,
            "cell": cell,
            "state": state,
            "attempt": attempt,
            "job": job,
            "reason": reason,
        }
        metrics_log.append(self.path, record | {key: value for key, value in more.items() if value not in (None, "")})

    def last(self) -> dict[str, Entry]:
        """The newest entry of every cell that has one."""
        return {r["cell"]: _entry(r) for r in self._records() if r["cell"] != COMPARISON}

    def comparison(self) -> Entry | None:
        """The newest entry of the job that compares; null where none was submitted."""
        return next((_entry(r) for r in reversed(self._records()) if r["cell"] == COMPARISON), None)

    def owner(self) -> int | None:
        """The user (uid) who launched the experiment; null before that."""
        return self.path.stat().st_uid if self.path.exists() else None

    def of(self, cell: str) -> list[metrics_log.Record]:
        """All that was recorded of `cell`, in order."""
        return [r for r in self._records() if r["cell"] == cell]

    def cell_of(self, job: str) -> str | None:
        """The cell that a scheduler's job was submitted for; null where it is none of ours."""
        return next((r["cell"] for r in reversed(self._records()) if r["job"] == job and r.get("scheduler")), None)

    def counted(self, state: str) -> dict[str, int]:
        """Cell → how often it entered `state`."""
        return Counter(r["cell"] for r in self._records() if r["state"] == state)

    def preemptions(self) -> dict[str, int]:
        """Cell → how often its scheduler took it off and started it again: cancelled for good is no preemption."""
        off, counts = set[str](), Counter[str]()
        for record in self._records():
            cell, state = record["cell"], record["state"]
            if state == "preempted":
                off.add(cell)
            elif cell in off:
                off.remove(cell)
                counts[cell] += state == "running"
        return counts

    def first_done(self) -> str | None:
        """When the first of the cells was done (UTC); null where none is."""
        return min((r["time"] for r in self._records() if r["state"] == "done"), default=None)

    def environments(self) -> dict[str, list[dict[str, Any]]]:
        """Cell → where each of its attempts ran (`environment.environment`), with `attempt` and `since` (UTC).

        Attempts from before environments were recorded are left out.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for record in self._records():
            if isinstance(where := record.get("environment"), dict):
                begun = {"attempt": record["attempt"], "since": record["time"]}
                found.setdefault(record["cell"], []).append(begun | where)
        return found

    def _records(self) -> list[metrics_log.Record]:
        """Raises `UserError` where a record lacks what every one has, or has it in another type."""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return []
        return _checked(self.path, now.st_size, now.st_mtime_ns)


@lru_cache(maxsize=4)  # it is asked for every cell, and every cell has lines in it
def _checked(path: Path, size: int, written: int) -> list[metrics_log.Record]:
    """The records as of that size and time: what is appended changes the one, what is mended by hand the other."""
    records, begun = [], dict[str, int]()  # cell → its last attempt that ran
    for record in metrics_log.read(path):
        for key, kind in KINDS.items():
            if key not in record:
                raise UserError(f"{path} has a record without '{key}': delete that line.")
            if not isinstance(record[key], kind):
                raise UserError(
                    f"{path} has a record whose {key} is {record[key]!r:.40}, not {kind.__name__}: delete that line."
                )
        if record["attempt"] < begun.get(record["cell"], 0):  # it was thought dead, and its word comes too late
            continue
        if record["state"] == "running":
            begun[record["cell"]] = record["attempt"]
        records.append(record)
    return records


def _entry(record: metrics_log.Record) -> Entry:
    beside = {key: record[key] for key in ("scheduler", "restart") if key in record}
    return Entry(record["state"], record["attempt"], record["job"], record["reason"], **beside)
