"""The comparison that follows the cells on a cluster: one, whatever dies, and resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator import monitoring
from orchestrator.experiments.run_directory import open_directory, record_launcher
from orchestrator.launch import finalize, queued, resume
from orchestrator.launch.launcher import launch
from orchestrator.monitoring.cells import read_comparison
from orchestrator.schedulers.scheduler import STARTED_BY
from orchestrator.schedulers.slurm import scheduler as slurm
from orchestrator.status import main as status_main
from orchestrator.storage.event_log import COMPARISON, EventLog
from tests.naming import names
from tests.orchestrator.launch.cluster import FOUR, Made, console, printed, with_state
from tests.orchestrator.schedulers.scripted import Scripted


def test_two_conclusions_never_stand_side_by_side(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = made(*FOUR)
    events = EventLog(experiment.directory)
    assert queued.submit_finalize(experiment, ["7_0", "7_1"])
    assert cluster.submitted() == ["1 x-comparison afterany:7"]
    assert not queued.submit_finalize(experiment, ["8"])
    cluster.become("1", "RUNNING")
    assert not queued.submit_finalize(experiment, ["8"]), "it has still to look at the cells"
    events.append(COMPARISON, "running", attempt=1, job="1", scheduler="slurm")
    cluster.become("1", "PENDING")
    assert not queued.submit_finalize(experiment, ["8"]), "preempted, it will look again"
    cluster.become("1", "RUNNING")
    assert queued.submit_finalize(experiment, ["8"]), "it has looked"
    assert cluster.submitted()[1:] == ["2 x-comparison afterany:8:1"]
    cluster.become("2", "COMPLETING")
    assert queued.submit_finalize(experiment, ["8"]), "cancelled as it began"
    assert cluster.submitted()[2:] == ["3 x-comparison afterany:8:2"]
    for name, value in ((STARTED_BY, "slurm"), ("SLURM_JOB_ID", "3")):
        monkeypatch.setenv(name, value)
    assert queued.submit_finalize(experiment, ["9"]), "which it is itself"
    cluster.become("4", "FAILED")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert queued.submit_finalize(experiment)
    assert cluster.submitted()[4:] == ["5 x-comparison"]


@pytest.mark.parametrize("said", ["submitted", "running"])
def test_a_comparison_that_died_is_lost_and_resumed(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    experiment = made(*FOUR)
    record_launcher(experiment)
    events = EventLog(experiment.directory)
    with_state(experiment, [cell.id for cell in experiment.cells], "done")
    queued.submit_finalize(experiment)
    events.append(COMPARISON, said, attempt=1, job="1", scheduler="slurm")
    assert read_comparison(experiment.directory) == "queued (job 1)"
    assert resume.resume(experiment.directory, "unfinished", console()) is None
    assert len(cluster.submitted()) == 1, "it waits"
    cluster.become("1", "SUSPENDED")
    assert read_comparison(experiment.directory) == "suspended (job 1)"
    cluster.become("1", "NODE_FAIL")
    lost = read_comparison(experiment.directory)
    assert lost.startswith("lost: ")
    assert names(lost, "job 1", "NODE_FAIL", "jobs/1_0_log.err")
    cluster.says("jobs", "")
    unknown = read_comparison(experiment.directory)
    assert unknown.startswith("lost: ")
    assert names(unknown, "Slurm", "job 1")
    monkeypatch.setattr(slurm, "ask", lambda *_: None)
    word = {"submitted": "queued", "running": "running"}[said]
    unasked = read_comparison(experiment.directory)
    assert unasked.startswith(f"{word} (job 1)")
    assert names(unasked, "event log", "Slurm")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{cluster.bin}:{os.environ['PATH']}")
    told = console()
    assert resume.resume(experiment.directory, "unfinished", told) is None
    assert "submitted again" in printed(told)
    assert cluster.submitted()[1:] == ["2 x-comparison"]
    events.append(COMPARISON, "done", attempt=1, job="2", scheduler="slurm")
    cluster.says("jobs", "")
    assert resume.resume(experiment.directory, "all", console()) is None
    assert len(cluster.submitted()) == 2


def test_the_screen_is_shown_once_for_every_conclusion(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, shown, slept = made(*FOUR, "launcher.wait=true"), list[str](), list[float]()
    queued.submit_finalize(experiment)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:  # it tried a cell again, and left another finalize
            cluster.become("1", "COMPLETED")
            queued.submit_finalize(experiment)
        if len(slept) == 5:
            cluster.become("2", "COMPLETED")

    monkeypatch.setattr(queued, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(monitoring, "watch", lambda directory, to: shown.append(directory.name))
    assert queued.follow(experiment, console())
    assert shown == ["x", "x"]
    assert len(slept) == 5


def test_a_checkpoint_that_cannot_be_read_leaves_the_others_to_be_compared(
    small: list[str], orchestrate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestrate(*small, "++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "seeds=[0]",
                       "launcher=debug", "name=x") == 0  # fmt: skip
    root = tmp_path / "outputs/x"
    for cell in ("a/seed=0", "b/seed=0"):
        (root / cell / "forensics/step_00000012.json").unlink()
    (root / "a/seed=0/.readings.lock").unlink()
    (root / "a/seed=0/.readings.lock").mkdir()
    experiment = resume.reopen(root)
    capsys.readouterr()
    assert finalize._compare_trained(experiment) == (2, None)
    told = capsys.readouterr().out
    assert names(told, "a/seed=0", "readings", ".readings.lock")
    assert (root / "b/seed=0/forensics/step_00000012.json").exists()
    (root / "b/seed=0/forensics/step_00000012.json").unlink()
    (root / "b/seed=0/metrics.jsonl").write_text("")  # it did not get to its end
    assert finalize._compare_trained(experiment) == (1, None)
    assert not (root / "b/seed=0/forensics/step_00000012.json").exists(), "nobody compares it"


def test_what_dies_before_it_begins_is_said_to_and_is_no_interruption(
    made: Made, cluster: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a line of `setup` fails: nobody pressed Ctrl-C."""
    experiment = made("seeds=[0]")
    launch(experiment, console())
    complaints: list[str] = []
    with_slurm = console()
    cluster.become("1", "FAILED")  # the cell; what follows it sees to it
    assert finalize.finalize(experiment, with_slurm, complaints.append) == 0
    assert names(printed(with_slurm), "1 cell with Slurm", "comparison")
    cluster.become("2", "FAILED")  # and that has the same setup
    (experiment.directory / "jobs/1_0_log.err").write_text("line 20: module: command not found\n")
    assert finalize.finalize(experiment, console(), complaints.append) == 2
    (complaint,) = complaints
    assert names(complaint, "main/seed=0", "lost", "FAILED", "launcher.slurm.setup", "jobs/1_0_log.err")
    assert complaint.endswith("\n  line 20: module: command not found")
    assert status_main([str(experiment.directory)]) == 0
    told = capsys.readouterr().out
    assert names(told, "launcher.slurm.setup")
    assert told.endswith(f"resume: python -m orchestrator.status {experiment.directory} --resume\n")


@pytest.mark.parametrize("may_submit", [True, False])
def test_the_queues_finalize_adds_pairs_until_decided(
    small: list[str], orchestrate: Callable[..., int], tmp_path: Path, cluster: Scripted,
    monkeypatch: pytest.MonkeyPatch, may_submit: bool,
) -> None:  # fmt: skip
    words = [*small, "++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "name=x"]
    assert orchestrate(*words, "seeds=[0]", "launcher=debug") == 0
    root = tmp_path / "outputs/x"
    experiment = replace(resume.reopen(root), auto=True)
    slurm_now = replace(experiment.config, launcher=replace(experiment.config.launcher, kind="slurm"))
    open_directory(replace(experiment, config=slurm_now))
    record_launcher(replace(experiment, config=slurm_now))
    for name, value in ((STARTED_BY, "slurm"), ("SLURM_JOB_ID", "9")):
        monkeypatch.setenv(name, value)
    if not may_submit:
        cluster.says("limit", "0")
    finalize.run_as_job(root)
    assert resume.reopen(root).config.seeds == [0, 1]
    last = EventLog(root).comparison()
    assert last is not None
    if may_submit:
        assert cluster.submitted() == ["1 x", "2 x-comparison afterany:1"]
        assert (last.state, last.job) == ("submitted", "2")
    else:
        assert (last.state, last.job) == ("done", "9")
        assert names(last.reason, "2 of 2 cells", "not decided", "submits them")
