"""When a cell that died is tried again, and when it is given up."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.jobs import retry
from orchestrator.schedulers import Slurm
from orchestrator.schedulers.scheduler import ThisJob
from orchestrator.storage.event_log import EventLog
from tests.naming import names

CELL = "a/seed=0"


def dies(events: EventLog, saved: int, reason: str = "it burst") -> None:
    if saved >= 0:
        (events.path.parent / CELL / f"checkpoints/step_{saved:08d}").mkdir(parents=True, exist_ok=True)
    retry.record_crash(events, CELL, reason, attempt=1, job="7", scheduler="slurm")


def states(events: EventLog) -> list[str]:
    return [record["state"] for record in events.of(CELL)]


def test_pauses_double_while_nothing_new_is_saved_and_then_it_is_given_up(tmp_path: Path) -> None:
    events, found = EventLog(tmp_path), []
    for _ in range(4):
        dies(events, saved=400)
        found.append(retry.pause_or_give_up(events, CELL, retries=3, backoff=5))
    assert found == [5, 10, 20, None]
    assert events.last()[CELL].state == "failed"
    assert events.last()[CELL].scheduler == "slurm"
    assert names(events.last()[CELL].reason, "4 times", "step 400", "it burst")


def test_who_gets_on_is_tried_for_ever(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    for saved in range(0, 2000, 100):
        dies(events, saved)
        assert retry.pause_or_give_up(events, CELL, retries=1, backoff=5) == 5


def test_no_pause_is_endless(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    for _ in range(12):
        dies(events, -1)
    assert retry.pause_or_give_up(events, CELL, retries=99, backoff=5) == retry.LONGEST_DELAY


@pytest.mark.parametrize("word", ["failed", "stopped", "done"])
def test_who_starts_it_again_means_it(tmp_path: Path, word: str) -> None:
    events = EventLog(tmp_path)
    for _ in range(5):
        dies(events, 4)
    events.append(CELL, word, attempt=5)
    dies(events, 4)
    assert retry.pause_or_give_up(events, CELL, retries=1, backoff=5) == 5


def test_without_retries_the_reason_is_the_death_itself(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    dies(events, 4, "it burst")
    assert retry.pause_or_give_up(events, CELL, retries=0, backoff=5) is None
    assert events.last()[CELL].reason == "it burst"


@settings(deadline=None)  # it writes files, which takes what the disk takes
@given(st.lists(st.sampled_from(["running", "preempted", "submitted"]), max_size=6), st.integers(0, 4))
def test_being_preempted_does_not_count_as_a_death(
    tmp_path_factory: pytest.TempPathFactory, states: list[str], retries: int
) -> None:
    """Between two deaths anything may have happened: what counts is how often it died where it is."""
    events = EventLog(tmp_path_factory.mktemp("cell"))
    events.append(CELL, "submitted", attempt=1)
    for death in range(1, 4):
        for state, _ in groupby(states):  # no attempt begins to train while another does
            events.append(CELL, state, attempt=1)
        dies(events, -1)
        given_up = retry.pause_or_give_up(events, CELL, retries, 1) is None
        assert given_up == (death > retries)
        if given_up:
            return


@pytest.mark.parametrize(
    ("last", "restart", "expected"),
    [
        ("submitted", 0, "crashed"),  # died before its first word
        ("running", 0, "crashed"),
        ("preempted", 1, "crashed"),  # the word of the run before this one
        ("crashed", 1, "crashed"),
        ("preempted", 0, None),
        ("stopped", 0, None),
        ("failed", 0, None),
        ("done", 0, None),
    ],
)
def test_what_a_job_says_when_its_process_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, restart: int, expected: str | None
) -> None:
    """Slurm alone is not there: it takes every job back."""
    asked: list[tuple[str, float]] = []
    monkeypatch.setattr(Slurm, "ending", lambda self, here: None)
    monkeypatch.setattr(Slurm, "requeue", lambda self, job, pause: asked.append((job, pause)) or True)
    events = EventLog(tmp_path)
    events.append(CELL, "submitted", attempt=1, job="7_3", scheduler="slurm")
    events.append(CELL, last, attempt=1, job="7_3", scheduler="slurm", restart=0)
    retry.after(events, Slurm(tmp_path), ThisJob("7_3", restart), 137, retries=2, backoff=4)
    if expected is None:
        assert asked == []
        assert states(events) == ["submitted", last]
    else:
        assert asked == [("7_3", 4)]
        assert states(events) == ["submitted", last, expected]
        assert "SIGKILL" in events.last()[CELL].reason
        assert events.last()[CELL].restart == restart


def test_a_death_that_the_cell_told_itself_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(Slurm, "ending", lambda self, here: None)
    monkeypatch.setattr(Slurm, "requeue", lambda self, job, pause: asked.append(pause) or True)
    events = EventLog(tmp_path)
    events.append(CELL, "crashed", attempt=1, job="7", reason="RuntimeError: no", scheduler="slurm", saved=3)
    retry.after(events, Slurm(tmp_path), ThisJob("7", 0), 1, retries=2, backoff=4)
    assert states(events) == ["crashed"]
    assert asked == [4]


def test_a_job_that_slurm_does_not_take_back_has_failed_as_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slurm, "ending", lambda self, here: None)
    monkeypatch.setattr(Slurm, "requeue", lambda self, job, pause: False)
    events = EventLog(tmp_path)
    events.append(CELL, "running", attempt=1, job="7", scheduler="slurm")
    retry.after(events, Slurm(tmp_path), ThisJob("7", 0), 1, retries=2, backoff=4)
    last = events.last()[CELL]
    assert (last.state, last.job, last.scheduler) == ("failed", "7", "slurm")


@pytest.mark.parametrize(("job", "restart"), [("7", 1), ("9", 0)])
def test_the_script_of_a_dead_run_leaves_its_successor_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, restart: int
) -> None:
    """A node came back on which the script of job 7 was still waiting for its process."""
    monkeypatch.setattr(Slurm, "ending", lambda self, here: None)
    monkeypatch.setattr(Slurm, "requeue", lambda *_: pytest.fail("it was requeued"))
    events = EventLog(tmp_path)
    events.append(CELL, "running", attempt=1, job="7", scheduler="slurm", restart=0)
    events.append(CELL, "crashed", attempt=1, job="7", scheduler="slurm", restart=0)  # as its successor recorded
    events.append(CELL, "running", attempt=2, job=job, scheduler="slurm", restart=restart)
    retry.after(events, Slurm(tmp_path), ThisJob("7", 0), 143, retries=2, backoff=4)
    assert states(events) == ["running", "crashed", "running"]


def test_a_strange_job_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slurm, "ending", lambda self, here: None)
    retry.after(EventLog(tmp_path), Slurm(tmp_path), ThisJob("8", 0), 1, retries=2, backoff=4)
    assert not (tmp_path / "events.jsonl").exists()


def test_outside_of_a_job_there_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert retry.main([str(tmp_path), "1"]) == 2
    assert "not a job" in capsys.readouterr().err
