"""The states that an event log gives to a cell, and which of them may follow which."""

from __future__ import annotations

import warnings
from typing import NamedTuple


class CellState(NamedTuple):
    """One state of the table below."""

    is_open: bool  # another event must follow
    needs_open: bool  # it can only follow an open state; any other may come first, and after anything
    meaning: str


STATES = {
    "submitted": CellState(True, False, "a launcher has started its process, or a scheduler has taken its job"),
    "running": CellState(True, False, "an attempt has begun to train"),
    "preempted": CellState(True, True, "its scheduler has taken it off, and will start it again"),
    "crashed": CellState(True, False, "an attempt has died, and the cell is tried again or given up"),
    "stopped": CellState(False, True, "a signal or its user has ended it; launched again, it resumes"),
    "failed": CellState(False, False, "it cannot go on before somebody does what the reason says"),
    "done": CellState(False, True, "it has reached its last step"),
}
OPEN = tuple(state for state, row in STATES.items() if row.is_open)


class ImpossibleEvent(Warning):
    """A process of ours recorded what cannot have happened: an error of this program, which costs no event."""


def check(cell: str, before: str | None, after: str) -> None:
    """Warn (`ImpossibleEvent`, which the tests raise) of a state that is unknown, or that cannot follow `before`."""
    if after not in STATES:
        warnings.warn(f"{cell} is '{after}', which is no state: {', '.join(STATES)}", ImpossibleEvent, stacklevel=2)
    elif STATES[after].needs_open and before not in OPEN:
        warnings.warn(f"{cell} is {after} after {before or 'nothing'}", ImpossibleEvent, stacklevel=2)
