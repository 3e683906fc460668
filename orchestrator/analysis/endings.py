"""At which step readings are set side by side: one rule for every verdict on layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.pairs import Pair
from orchestrator.forensics.reading import Reading

Member = TypeVar("Member", CellResult, Pair)


@dataclass(frozen=True)
class Ending(Generic[Member]):
    """The newest step at which any member was read, and the members that were; the others take no part."""

    step: int | None  # null where no member was read; of a pair, both cells
    read: list[Member]
    unread: list[Member]
    end: int | None  # step at which the longest run ended; null where no metrics log tells

    @property
    def untrained(self) -> bool:
        """Whether all that was read is what the runs began with."""
        return self.step == 0 and bool(self.end)

    @property
    def when(self) -> str:
        """`step 100`, or `step 50 of 100` where the runs went on."""
        return f"step {self.step}" + (f" of {self.end}" if self._stale else "")

    @property
    def note(self) -> str:
        """A sentence for where the runs went on after the readings; else empty."""
        return f"The layers were last read at {self.when}." if self._stale else ""

    @property
    def without(self) -> str:
        """A sentence that names the seeds left out; empty where there are none."""
        if self.step is None or not self.unread:
            return ""
        return f"Seeds left out, not read at step {self.step}: {', '.join(str(one.seed) for one in self.unread)}."

    @property
    def _stale(self) -> bool:
        return self.step is not None and self.end is not None and self.step < self.end


def ending_of_cells(cells: Iterable[CellResult]) -> Ending[CellResult]:
    """The rule over cells."""
    members = list(cells)
    return _ending(members, [list(cell.readings) for cell in members], members)


def last_readings(cells: Iterable[CellResult]) -> list[Reading]:
    """The readings of the cells at their ending."""
    end = ending_of_cells(cells)
    return [cell.readings[end.step] for cell in end.read if end.step is not None]


def ending_of_pairs(arm: str, pairs: Iterable[Pair]) -> Ending[Pair]:
    """The rule over the pairs of `arm`; one was read where both of its cells were."""
    members = [pair for pair in pairs if pair.arm == arm]
    cells = [cell for pair in members for cell in (pair.a, pair.b)]
    return _ending(members, [pair.common_steps for pair in members], cells)


def _ending(members: list[Member], steps: list[list[int]], cells: Sequence[CellResult]) -> Ending[Member]:
    step = max((step for own in steps for step in own), default=None)
    both = list(zip(members, steps, strict=True))
    return Ending(
        step,
        read=[one for one, own in both if step in own],
        unread=[one for one, own in both if step not in own],
        end=max((cell.metrics[-1]["step"] for cell in cells if cell.metrics), default=None),
    )
