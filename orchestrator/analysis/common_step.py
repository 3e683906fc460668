"""Choose the step at which the readings of several cells are compared: one rule for every verdict on layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.pairs import Pair
from orchestrator.forensics.reading import Reading

Member = TypeVar("Member", CellResult, Pair)


@dataclass(frozen=True)
class CommonStep(Generic[Member]):
    """The newest step at which any cell, or both cells of any pair, was read, and its members read there or not."""

    step: int | None  # null where none was read
    read: list[Member]
    unread: list[Member]
    last: int | None  # step at which the longest run ended; null where no metrics log has a record

    @property
    def untrained(self) -> bool:
        """True where no reading is newer than step 0 although training went on."""
        return self.step == 0 and bool(self.last)

    @property
    def text(self) -> str:
        """`step 100`, or `step 50 of 100` where training continued after the readings."""
        return f"step {self.step}" + (f" of {self.last}" if self._stale else "")

    @property
    def stale_note(self) -> str:
        """A sentence where training continued after the readings, else empty."""
        return f"The layers were last read at {self.text}." if self._stale else ""

    @property
    def unread_note(self) -> str:
        """A sentence that names the seeds left out, else empty."""
        if self.step is None or not self.unread:
            return ""
        return f"Seeds left out, not read at step {self.step}: {', '.join(str(one.seed) for one in self.unread)}."

    @property
    def _stale(self) -> bool:
        return self.step is not None and self.last is not None and self.step < self.last


def common_step(members: Iterable[Member]) -> CommonStep[Member]:
    """Return the common step of cells or of pairs; a pair counts as read where both of its cells are."""
    every = list(members)
    step = max((step for one in every for step in one.common_steps), default=None)
    return CommonStep(
        step,
        read=[one for one in every if step in one.common_steps],
        unread=[one for one in every if step not in one.common_steps],
        last=max((cell.metrics[-1]["step"] for one in every for cell in one.cells if cell.metrics), default=None),
    )


def common_step_of_pairs(arm: str, pairs: Iterable[Pair]) -> CommonStep[Pair]:
    """Return the common step of the pairs of `arm`."""
    return common_step(pair for pair in pairs if pair.arm == arm)


def last_readings(cells: Iterable[CellResult]) -> list[Reading]:
    """Return the readings of the cells at their common step."""
    at = common_step(cells)
    return [cell.readings[at.step] for cell in at.read if at.step is not None]
