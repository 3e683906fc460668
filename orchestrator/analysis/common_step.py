"""The step at which readings of several cells are compared: one rule for every verdict on layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.pairs import Pair
from orchestrator.forensics.reading import Reading

Member = TypeVar("Member", CellResult, Pair)


@dataclass(frozen=True)
class CommonStep(Generic[Member]):
    """The newest step at which any cell (or both cells of any pair) was read; members not read there are left out."""

    step: int | None  # null where none was read
    read: list[Member]
    unread: list[Member]
    last: int | None  # step at which the longest run ended; null where no metrics log has a record

    @property
    def untrained(self) -> bool:
        """True where the only readings are those before training."""
        return self.step == 0 and bool(self.last)

    @property
    def text(self) -> str:
        """`step 100`, or `step 50 of 100` where training continued after the readings."""
        return f"step {self.step}" + (f" of {self.last}" if self._stale else "")

    @property
    def stale_note(self) -> str:
        """A sentence where training continued after the readings; else empty."""
        return f"The layers were last read at {self.text}." if self._stale else ""

    @property
    def unread_note(self) -> str:
        """A sentence that names the seeds left out; empty where there are none."""
        if self.step is None or not self.unread:
            return ""
        return f"Seeds left out, not read at step {self.step}: {', '.join(str(one.seed) for one in self.unread)}."

    @property
    def _stale(self) -> bool:
        return self.step is not None and self.last is not None and self.step < self.last


def common_step_of_cells(cells: Iterable[CellResult]) -> CommonStep[CellResult]:
    """The common step of cells."""
    members = list(cells)
    return _common_step(members, [list(cell.readings) for cell in members], members)


def common_step_of_pairs(arm: str, pairs: Iterable[Pair]) -> CommonStep[Pair]:
    """The common step of the pairs of `arm`; a pair is read where both of its cells are."""
    members = [pair for pair in pairs if pair.arm == arm]
    cells = [cell for pair in members for cell in (pair.a, pair.b)]
    return _common_step(members, [pair.common_steps for pair in members], cells)


def last_readings(cells: Iterable[CellResult]) -> list[Reading]:
    """The readings of the cells at their common step."""
    at = common_step_of_cells(cells)
    return [cell.readings[at.step] for cell in at.read if at.step is not None]


def _common_step(members: list[Member], steps: list[list[int]], cells: Sequence[CellResult]) -> CommonStep[Member]:
    step = max((step for own in steps for step in own), default=None)
    both = list(zip(members, steps, strict=True))
    return CommonStep(
        step,
        read=[one for one, own in both if step in own],
        unread=[one for one, own in both if step not in own],
        last=max((cell.metrics[-1]["step"] for cell in cells if cell.metrics), default=None),
    )
