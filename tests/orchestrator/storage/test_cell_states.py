"""States of a cell follow each other as the table says, and an impossible one costs no event."""

from __future__ import annotations

import json
import warnings
from itertools import chain
from pathlib import Path

import pytest

from orchestrator.storage.cell_states import OPEN, STATES, ImpossibleEvent
from orchestrator.storage.event_log import EventLog
from tests.naming import naming

CELL = "a/seed=0"
# Stated here a second time, by the end of the story: which states may come before.
MAY_FOLLOW = {
    "submitted": {None, *STATES},
    "running": {None, *STATES} - {"running"},
    "preempted": {"submitted", "running", "preempted", "crashed"},
    "crashed": {None, *STATES},
    "stopped": {"submitted", "running", "preempted", "crashed"},
    "failed": {None, *STATES},
    "done": {"submitted", "running", "crashed"},
}


def story_to(state: str | None) -> list[str]:
    """Possible states that end in `state`."""
    return [] if state is None else [state] if None in MAY_FOLLOW[state] else ["running", state]


@pytest.mark.parametrize("before", [None, *STATES])
@pytest.mark.parametrize("after", STATES)
def test_the_table_is_asked_when_an_event_is_written_and_when_it_is_read(
    tmp_path: Path, before: str | None, after: str
) -> None:
    events = EventLog(tmp_path)
    for state in story_to(before):
        events.append(CELL, state, attempt=1)
    if before in MAY_FOLLOW[after]:
        events.append(CELL, after, attempt=1)
        assert events.last()[CELL].state == after
        return
    with pytest.raises(ImpossibleEvent, match=f"{CELL} is {after} after {before or 'nothing'}"):
        events.append(CELL, after, attempt=1)
    with pytest.raises(ImpossibleEvent, match=f"{CELL} is {after} after {before or 'nothing'}"):
        events.last()  # as a log that another program wrote
    with warnings.catch_warnings(action="ignore"):  # as in use: nothing is lost
        assert [r["state"] for r in events.of(CELL)] == [*story_to(before), after]
        events.append(CELL, "submitted", attempt=2)
        assert events.last()[CELL].state == "submitted"


def test_every_state_of_the_table_can_be_reached_and_an_open_one_left() -> None:
    assert set(chain.from_iterable(row.follows for row in STATES.values())) == {None, *STATES}
    assert all(any(state in row.follows for name, row in STATES.items() if name not in OPEN) for state in OPEN)


def test_an_unknown_state_is_refused_before_it_is_written(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    with pytest.raises(ValueError, match=naming("asleep", *STATES)):
        events.append(CELL, "asleep", attempt=1)
    assert not events.path.exists()


def test_an_unknown_state_in_the_log_of_another_program_is_impossible(tmp_path: Path) -> None:
    record = {"time": "", "cell": CELL, "state": "asleep", "attempt": 1, "job": "", "reason": ""}
    (tmp_path / "events.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(ImpossibleEvent, match="asleep"):
        EventLog(tmp_path).last()


@pytest.mark.parametrize("broken", ["{}", "a/seed=0", '["a/seed=0"]', '{"cell": "a/seed=0"}'])
def test_a_log_with_a_broken_line_takes_the_next_event(tmp_path: Path, broken: str) -> None:
    (tmp_path / "events.jsonl").write_text(broken + "\n")
    EventLog(tmp_path).append(CELL, "running", attempt=1)
    assert '"running"' in (tmp_path / "events.jsonl").read_text().splitlines()[1]
