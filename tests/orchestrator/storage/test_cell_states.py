"""Which states of a cell may follow which, and that an impossible one costs no event."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from orchestrator.storage.cell_states import OPEN, STATES, ImpossibleEvent
from orchestrator.storage.event_log import EventLog

CELL = "a/seed=0"


@pytest.mark.parametrize("before", [None, *STATES])
@pytest.mark.parametrize("after", STATES)
def test_only_an_open_cell_is_done_stopped_or_preempted(tmp_path: Path, before: str | None, after: str) -> None:
    events = EventLog(tmp_path)
    for state in ("running", before) if before else ():
        events.append(CELL, state, attempt=1)
    events.append(CELL, after, attempt=1)
    if after in ("done", "stopped", "preempted") and before not in OPEN:
        with pytest.raises(ImpossibleEvent, match=f"{CELL} is {after} after {before or 'nothing'}"):
            events.last()
        with warnings.catch_warnings(action="ignore"):  # as in use
            assert events.last()[CELL].state == after
    else:
        assert events.last()[CELL].state == after


def test_an_unknown_state_is_impossible(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    events.append(CELL, "asleep", attempt=1)
    with pytest.raises(ImpossibleEvent, match="asleep"):
        events.last()
