"""One experiment as it is served: read at most once a second, for all viewers together."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import printable
from orchestrator.experiments import description
from orchestrator.monitoring.cells import CellStatus, read_comparison, read_status
from orchestrator.monitoring.live.curves import Curve
from orchestrator.monitoring.live.so_far import SoFar
from orchestrator.monitoring.live.state import describe
from orchestrator.monitoring.watch import EFFORT, INTERVAL

REPORT = "comparison/report.html"


@dataclass(frozen=True)
class Answer:
    """JSON and a tag that changes with it."""

    content: bytes
    etag: str


def answer(document: dict[str, Any]) -> Answer:
    content = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    return Answer(content, f'"{hashlib.sha256(content).hexdigest()[:20]}"')


class Served:
    """An experiment's directory, which may appear, change and vanish while it is served."""

    def __init__(self, directory: Path, effort: float = EFFORT) -> None:
        """`effort`: the largest share of a core that reading may take, and again comparing."""
        self.directory, self.effort = directory.resolve(), effort
        self.so_far = SoFar(self.directory, effort)
        self.document: dict[str, Any] = {}
        self._answer: Answer | None = None
        self._curves: dict[str, Curve] = {}
        self._due = 0.0
        self._reading = threading.Lock()

    def answer(self) -> Answer:
        """The experiment's state, read again where that is due and no other viewer's request is reading it."""
        if self._reading.acquire(blocking=self._answer is None):
            try:
                if time.monotonic() >= self._due:
                    self._refresh()
            finally:
                self._reading.release()
        assert self._answer is not None
        return self._answer

    def _refresh(self) -> None:
        started = time.monotonic()
        state: dict[str, Any] = {"name": printable(self.directory.name), "place": printable(str(self.directory.parent))}
        try:
            state |= self._state()
        except (UserError, OSError) as error:
            state["problem"] = printable(str(error))
        except Exception as error:  # a viewer must hear of a file that holds something unheard of, and go on
            state["problem"] = printable(f"The experiment cannot be read: {type(error).__name__}: {error}")
        self.document = state
        self._answer = answer(state)
        self._due = time.monotonic() + max(INTERVAL, (time.monotonic() - started) / self.effort)

    def _state(self) -> dict[str, Any]:
        cells = read_status(self.directory)
        for cell in cells:
            curve = self._curves.setdefault(cell.cell, Curve(self.directory / cell.cell / "metrics.jsonl"))
            with suppress(OSError):  # the status has said so
                curve.read_on(cell.steps)
        self.so_far.refresh(_finished(cells))
        return {
            "question": _question(self.directory),
            "comparison": printable(read_comparison(self.directory)),
            "report": _written(self.directory / REPORT),
            "so_far": self.so_far.shown,
            **describe(cells, self._curves),
        }


def _finished(cells: list[CellStatus]) -> frozenset[tuple[Any, ...]]:
    """The cells that are done, with their newest readings and interventions: a comparison changes when these do."""
    return frozenset((c.cell, c.attempt, c.steps, c.read, c.intervened) for c in cells if c.state == "done")


def _question(directory: Path) -> str:
    path = directory / "experiment.yaml"
    return _question_of(path, path.stat().st_mtime_ns) if path.exists() else ""


@lru_cache(maxsize=64)
def _question_of(path: Path, written: int) -> str:
    return printable(str(description.read(path.parent).get("question") or ""))


def _written(path: Path) -> float | None:
    """The time at which the file was written, seconds since the epoch; None where there is no file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
