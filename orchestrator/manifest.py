"""What became of every cell of an experiment: an append-only list of its states."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator import ledger
from orchestrator.errors import UserError

KINDS = {"time": str, "cell": str, "state": str, "attempt": int, "job": str, "reason": str}  # of every record
STATES = ("submitted", "running", "done", "failed", "stopped")


@dataclass(frozen=True)
class Entry:
    """The last word on a cell."""

    state: str
    attempt: int
    job: str
    reason: str


class Manifest:
    """`manifest.jsonl` of one experiment. Cells and launcher append; nobody rewrites."""

    def __init__(self, experiment_dir: Path) -> None:
        self.path = experiment_dir / "manifest.jsonl"

    def append(
        self,
        cell: str,
        state: str,
        *,
        attempt: int,
        job: str = "",
        reason: str = "",
        environment: dict[str, Any] | None = None,
    ) -> None:
        """Record that `cell` (`<arm>/seed=<k>`) entered `state`, one of `STATES`; of `running`, also where."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        record = {
            "time": time,
            "cell": cell,
            "state": state,
            "attempt": attempt,
            "job": job,
            "reason": reason,
        }
        ledger.append(self.path, record | ({"environment": environment} if environment else {}))

    def last(self) -> dict[str, Entry]:
        """The newest entry of every cell that has one."""
        return {r["cell"]: Entry(r["state"], r["attempt"], r["job"], r["reason"]) for r in self._records()}

    def attempts(self, cell: str) -> int:
        """How often `cell` has started to run."""
        return sum(r["cell"] == cell and r["state"] == "running" for r in self._records())

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

    def _records(self) -> list[ledger.Record]:
        """Raises `UserError` where a record lacks what every one has, or has it in another type."""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return []
        return _checked(self.path, now.st_size, now.st_mtime_ns)


@lru_cache(maxsize=4)  # it is asked for every cell, and every cell has lines in it
def _checked(path: Path, size: int, written: int) -> list[ledger.Record]:
    """The records as of that size and time: what is appended changes the one, what is mended by hand the other."""
    records = ledger.read(path)
    for record in records:
        for key, kind in KINDS.items():
            if key not in record:
                raise UserError(f"{path} has a record without '{key}': delete that line.")
            if not isinstance(record[key], kind):
                raise UserError(
                    f"{path} has a record whose {key} is {record[key]!r:.40}, not {kind.__name__}: delete that line."
                )
    return records
