"""When a cell that died is tried again, and when it is given up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.jobs import retry
from orchestrator.schedulers.slurm import ThisJob
from orchestrator.storage.event_log import Manifest

CELL = "a/seed=0"


def dies(manifest: Manifest, saved: int, reason: str = "it burst") -> None:
    if saved >= 0:
        (manifest.path.parent / CELL / f"checkpoints/step_{saved:08d}").mkdir(parents=True, exist_ok=True)
    retry.died(manifest, CELL, reason, attempt=1, job="7", scheduler="slurm")


def states(manifest: Manifest) -> list[str]:
    return [record["state"] for record in manifest.of(CELL)]


def test_pauses_double_while_nothing_new_is_saved_and_then_it_is_given_up(tmp_path: Path) -> None:
    manifest, found = Manifest(tmp_path), []
    for _ in range(4):
        dies(manifest, saved=400)
        found.append(retry.pause_or_give_up(manifest, CELL, retries=3, backoff=5))
    assert found == [5, 10, 20, None]
    assert manifest.last()[CELL].state == "failed"
    assert manifest.last()[CELL].scheduler == "slurm"
    assert manifest.last()[CELL].reason == ("died 4 times after its checkpoint of step 400, most recently: it burst")


def test_who_gets_on_is_tried_for_ever(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    for saved in range(0, 2000, 100):
        dies(manifest, saved)
        assert retry.pause_or_give_up(manifest, CELL, retries=1, backoff=5) == 5


def test_no_pause_is_endless(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    for _ in range(12):
        dies(manifest, -1)
    assert retry.pause_or_give_up(manifest, CELL, retries=99, backoff=5) == retry.LONGEST_DELAY


@pytest.mark.parametrize("word", ["failed", "stopped", "done"])
def test_who_starts_it_again_means_it(tmp_path: Path, word: str) -> None:
    manifest = Manifest(tmp_path)
    for _ in range(5):
        dies(manifest, 4)
    manifest.append(CELL, word, attempt=5)
    dies(manifest, 4)
    assert retry.pause_or_give_up(manifest, CELL, retries=1, backoff=5) == 5


def test_without_retries_the_reason_is_the_death_itself(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    dies(manifest, 4, "it burst")
    assert retry.pause_or_give_up(manifest, CELL, retries=0, backoff=5) is None
    assert manifest.last()[CELL].reason == "it burst"


@given(st.lists(st.sampled_from(["running", "preempted", "submitted"]), max_size=6), st.integers(0, 4))
def test_being_preempted_is_no_death(tmp_path_factory: pytest.TempPathFactory, story: list[str], retries: int) -> None:
    """Between two deaths anything may have happened: what counts is how often it died where it is."""
    manifest = Manifest(tmp_path_factory.mktemp("story"))
    for death in range(1, 4):
        for state in story:
            manifest.append(CELL, state, attempt=1)
        dies(manifest, -1)
        given_up = retry.pause_or_give_up(manifest, CELL, retries, 1) is None
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
    monkeypatch.setattr("orchestrator.schedulers.slurm.ending", lambda here: None)
    monkeypatch.setattr("orchestrator.schedulers.slurm.requeue", lambda job, pause: asked.append((job, pause)) or True)
    manifest = Manifest(tmp_path)
    manifest.append(CELL, last, attempt=1, job="7_3", scheduler="slurm", restart=0)
    retry.after(manifest, ThisJob("7_3", restart), 137, retries=2, backoff=4)
    if expected is None:
        assert asked == []
        assert states(manifest) == [last]
    else:
        assert asked == [("7_3", 4)]
        assert states(manifest) == [last, expected]
        assert manifest.last()[CELL].reason == "its process ended without a word (SIGKILL, perhaps out of memory)"
        assert manifest.last()[CELL].restart == restart


def test_a_death_that_the_cell_told_itself_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr("orchestrator.schedulers.slurm.ending", lambda here: None)
    monkeypatch.setattr("orchestrator.schedulers.slurm.requeue", lambda job, pause: asked.append(pause) or True)
    manifest = Manifest(tmp_path)
    manifest.append(CELL, "crashed", attempt=1, job="7", reason="RuntimeError: no", scheduler="slurm", saved=3)
    retry.after(manifest, ThisJob("7", 0), 1, retries=2, backoff=4)
    assert states(manifest) == ["crashed"]
    assert asked == [4]


def test_a_job_that_slurm_does_not_take_back_has_failed_as_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.schedulers.slurm.ending", lambda here: None)
    monkeypatch.setattr("orchestrator.schedulers.slurm.requeue", lambda job, pause: False)
    manifest = Manifest(tmp_path)
    manifest.append(CELL, "running", attempt=1, job="7", scheduler="slurm")
    retry.after(manifest, ThisJob("7", 0), 1, retries=2, backoff=4)
    last = manifest.last()[CELL]
    assert (last.state, last.job, last.scheduler) == ("failed", "7", "slurm")


@pytest.mark.parametrize(("job", "restart"), [("7", 1), ("9", 0)])
def test_the_script_of_a_dead_run_leaves_its_successor_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, restart: int
) -> None:
    """A node came back on which the script of job 7 was still waiting for its process."""
    monkeypatch.setattr("orchestrator.schedulers.slurm.ending", lambda here: None)
    monkeypatch.setattr("orchestrator.schedulers.slurm.requeue", lambda *_: pytest.fail("it was requeued"))
    manifest = Manifest(tmp_path)
    manifest.append(CELL, "running", attempt=1, job="7", scheduler="slurm", restart=0)
    manifest.append(CELL, "running", attempt=2, job=job, scheduler="slurm", restart=restart)
    retry.after(manifest, ThisJob("7", 0), 143, retries=2, backoff=4)
    assert states(manifest) == ["running", "running"]


def test_a_strange_job_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.schedulers.slurm.ending", lambda here: None)
    retry.after(Manifest(tmp_path), ThisJob("8", 0), 1, retries=2, backoff=4)
    assert not (tmp_path / "manifest.jsonl").exists()


def test_outside_of_a_job_there_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert retry.main([str(tmp_path), "1"]) == 2
    assert "no job of Slurm" in capsys.readouterr().err
