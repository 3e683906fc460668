"""The losses of a cell over its steps, read on from where the metrics log was last read."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

POINTS = 100  # at most, of a curve: each stands for this share of the steps
LINES = 60  # cells at most that have a line of their own
TAIL = 64  # bytes that show whether a log still begins as it was read
BYTES = 8_000_000  # of a log that are read at once; the rest follows at the next refresh

Line = list[tuple[float, float]]  # (step, loss) …


class Curve:
    """The training loss (a mean of the records of a hundredth of the steps) and the held-out loss (the newest of it).

    A log that was cut, because its steps are trained again, is read anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._restart(0)

    def _restart(self, steps: int) -> None:
        self.steps, self.offset, self.tail = steps, 0, b""
        self.train: dict[int, list[tuple[int, float]]] = {}  # bin → its records
        self.heldout: dict[int, tuple[int, float]] = {}
        self.last = -1  # step

    def read_on(self, steps: int) -> None:
        """Read what was appended, for a run of so many steps. Raises `OSError`, but not where there is no log yet."""
        if steps != self.steps:
            self._restart(steps)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset - len(self.tail))
                if file.read(len(self.tail)) != self.tail:
                    self._restart(steps)
                    file.seek(0)
                whole, newline, _ = file.read(BYTES).rpartition(b"\n")
        except FileNotFoundError:
            return
        for line in whole.split(b"\n") if newline else ():
            try:
                self._add(json.loads(line))
            except (ValueError, RecursionError):  # the status has an alert
                continue
        self.offset += len(whole) + len(newline)
        self.tail = (self.tail + whole + newline)[-TAIL:]

    def _add(self, record: Any) -> None:
        step = record.get("step") if isinstance(record, dict) else None
        if not isinstance(step, int):
            return
        place = step * POINTS // max(1, self.steps)
        if step <= self.last:
            for bins in (self.train, self.heldout):
                for later in [at for at in bins if at >= place]:
                    del bins[later]
        self.last = step
        if _is_number(loss := record.get("loss")):
            self.train.setdefault(place, []).append((step, loss))
        domains = record.get("heldout")
        if isinstance(domains, dict) and domains and all(map(_is_number, domains.values())):
            self.heldout[place] = step, statistics.fmean(domains.values())

    def lines(self) -> tuple[Line, Line]:
        """The training loss and the held-out loss."""
        train = ((records[-1][0], statistics.fmean(loss for _, loss in records)) for records in self.train.values())
        return _rounded(train), _rounded(self.heldout.values())


def mean(lines: Sequence[Line]) -> Line:
    """The mean of the lines at the steps that all of them have."""
    known = [dict(line) for line in lines]
    steps = sorted(set.intersection(*map(set, known))) if known else []
    return _rounded((step, statistics.fmean(losses[step] for losses in known)) for step in steps)


def _rounded(points: Iterable[tuple[float, float]]) -> Line:
    return [(step, round(loss, 4)) for step, loss in points]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
