"""The states of a cell in the event log, and the order in which they may follow each other."""

from __future__ import annotations

import warnings
from typing import NamedTuple


class CellState(NamedTuple):
    """One state of the table below."""

    is_open: bool  # another event must follow
    follows: tuple[str | None, ...]  # the states that may come before it; None: it may be the first
    meaning: str


IN_PROGRESS = ("submitted", "running", "preempted", "crashed")
ANY = (None, *IN_PROGRESS, "stopped", "failed", "done")  # a cell is launched again after any end, even of its launcher

STATES = {
    "submitted": CellState(True, ANY, "a launcher has started its process, or a scheduler has taken its job"),
    # a new attempt first records that the attempt before it, if still running, has crashed
    "running": CellState(True, tuple(s for s in ANY if s != "running"), "an attempt has begun to train"),
    # after a preemption or a crash: a job that was started again, and has not got as far as to run
    "preempted": CellState(True, IN_PROGRESS, "its scheduler has stopped it, and will start it again"),
    "crashed": CellState(True, ANY, "an attempt has died, and the cell is tried again or given up"),
    "stopped": CellState(False, IN_PROGRESS, "a signal or its user has ended it; launched again, it resumes"),
    "failed": CellState(False, ANY, "it cannot go on until the cause in its reason is mended"),
    # after a submission that its launcher records late, or a crash of a process that was only taken for dead
    "done": CellState(False, ("submitted", "running", "crashed"), "it has reached its last step"),
}
OPEN = tuple(state for state, row in STATES.items() if row.is_open)


class ImpossibleEvent(Warning):
    """An event that cannot follow the one before it: an error of this program. The event is recorded all the same."""


def check(cell: str, before: str | None, after: str) -> None:
    """Warn (`ImpossibleEvent`) of a state that is unknown or cannot follow `before`; the tests raise the warning."""
    if after not in STATES:
        warnings.warn(f"{cell} is '{after}', which is not a state: {', '.join(STATES)}", ImpossibleEvent, stacklevel=2)
    elif before not in STATES[after].follows and (before is None or before in STATES):
        warnings.warn(f"{cell} is {after} after {before or 'nothing'}", ImpossibleEvent, stacklevel=2)
