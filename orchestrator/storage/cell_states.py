"""The states of a cell in the event log, and the order in which they may follow each other."""

from __future__ import annotations

import warnings
from typing import NamedTuple


class CellState(NamedTuple):
    """One state of the table below."""

    is_open: bool  # another event must follow
    needs_open: bool  # it can only follow an open state; any other may come first, and after any
    meaning: str


STATES = {
    "submitted": CellState(True, False, "a launcher has started its process, or a scheduler has taken its job"),
    "running": CellState(True, False, "an attempt has begun to train"),
    "preempted": CellState(True, True, "its scheduler has stopped it, and will start it again"),
    "crashed": CellState(True, False, "an attempt has died, and the cell is tried again or given up"),
    "stopped": CellState(False, True, "a signal or its user has ended it; launched again, it resumes"),
    "failed": CellState(False, False, "it cannot go on until the cause in its reason is mended"),
    "done": CellState(False, True, "it has reached its last step"),
}
OPEN = tuple(state for state, row in STATES.items() if row.is_open)


class ImpossibleEvent(Warning):
    """An event that cannot follow the one before it: an error of this program. The event is recorded all the same."""


def check(cell: str, before: str | None, after: str) -> None:
    """Warn (`ImpossibleEvent`) of a state that is unknown or cannot follow `before`; the tests raise the warning."""
    if after not in STATES:
        warnings.warn(f"{cell} is '{after}', which is not a state: {', '.join(STATES)}", ImpossibleEvent, stacklevel=2)
    elif STATES[after].needs_open and before not in OPEN:
        warnings.warn(f"{cell} is {after} after {before or 'nothing'}", ImpossibleEvent, stacklevel=2)
