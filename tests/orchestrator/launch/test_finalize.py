"""The comparison that follows the cells on a cluster: one, whatever dies, and resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import monitoring
from orchestrator.config.schema import TrackerConfig, TrackerMode
from orchestrator.experiments.experiment import Experiment
from orchestrator.experiments.run_directory import open_directory, record_launcher
from orchestrator.jobs.worker import is_finished
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
    capsys.readouterr()
    finalize.run_as_job(root)
    told = capsys.readouterr().out
    assert names(told, "a/seed=0", "readings", ".readings.lock")
    assert compared(root) == ("done", "2 of 2 cells")
    assert (root / "b/seed=0/forensics/step_00000012.json").exists()
    (root / "b/seed=0/forensics/step_00000012.json").unlink()
    (root / "b/seed=0/metrics.jsonl").write_text("")  # it did not get to its end
    finalize.run_as_job(root)
    assert compared(root) == ("done", "1 of 2 cells")
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


def compared(root: Path) -> tuple[str, str]:
    """State and reason of the newest comparison."""
    last = EventLog(root).comparison()
    assert last is not None
    return last.state, last.reason


def logged(root: Path) -> bool:
    """True where the comparison has a run of W&B."""
    return any(root.glob("comparison/wandb/offline-run-*/*.wandb"))


def in_the_queues_job(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the experiment as launched with `seeds: auto` in Slurm; this process is its finalize, job 9."""
    launcher, tracker = replace(experiment.config.launcher, kind="slurm"), TrackerConfig(TrackerMode.offline)
    config = replace(experiment.config, launcher=launcher, tracker=tracker)
    cells = tuple(replace(cell, config=replace(cell.config, tracker=tracker)) for cell in experiment.cells)
    open_directory(replace(experiment, config=config, cells=cells, auto=True))
    record_launcher(replace(experiment, config=config))
    for name, value in ((STARTED_BY, "slurm"), ("SLURM_JOB_ID", "9")):
        monkeypatch.setenv(name, value)


@pytest.fixture
def pair(trained: Callable[..., Path]) -> Path:
    """The directory of one finished pair, a and b at seed 0."""
    return trained("++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "name=x", "seeds=[0]")


@pytest.mark.parametrize("may_submit", [True, False])
def test_the_queues_finalize_adds_pairs_until_decided(
    pair: Path, cluster: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], may_submit: bool
) -> None:
    in_the_queues_job(resume.reopen(pair), monkeypatch)
    if not may_submit:
        cluster.says("limit", "0")
    capsys.readouterr()
    finalize.run_as_job(pair)
    assert resume.reopen(pair).config.seeds == [0, 1]
    last, told = EventLog(pair).comparison(), capsys.readouterr().out
    assert last is not None
    if may_submit:
        assert cluster.submitted() == ["1 x", "2 x-comparison afterany:1"]
        assert (last.state, last.job) == ("submitted", "2")
        assert not logged(pair)
    else:
        assert (last.state, last.job) == ("done", "9")
        assert names(last.reason, "2 of 2 cells", "not decided", "submits them")
        assert names(told, "Which arm won?", "QOS", "submits them"), "the comparison is shown, and the reason"
        assert logged(pair)


def test_a_queue_that_refuses_the_next_pairs_leaves_a_launch_its_comparison(
    pair: Path, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_queues_job(resume.reopen(pair), monkeypatch)
    for name in (STARTED_BY, "SLURM_JOB_ID"):
        monkeypatch.delenv(name)
    cluster.says("limit", "0")
    told, complaints = console(), list[str]()
    assert finalize.finalize(resume.reopen(pair), told, complaints.append) == 2
    assert names(printed(told), "seed 1 of every arm", "Which arm won?")
    assert names("".join(complaints), "QOS")
    assert logged(pair)


def test_cells_that_a_launcher_submits_meanwhile_are_not_submitted_again(
    pair: Path, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the next pairs are recorded, and the same command is given before the job has submitted them."""
    in_the_queues_job(resume.reopen(pair), monkeypatch)
    compare = finalize._compare

    def compare_slowly(experiment: Experiment, *, more: bool) -> tuple[Any, Experiment | None, str]:
        found = compare(experiment, more=more)
        with monkeypatch.context() as elsewhere:
            elsewhere.delenv("SLURM_JOB_ID")
            elsewhere.delenv(STARTED_BY)
            cluster.says("jobs", f"9|RUNNING|None|{pair}/jobs/x.sh\n")
            launch(resume.reopen(pair), console())
        return found

    monkeypatch.setattr(finalize, "_compare", compare_slowly)
    finalize.run_as_job(pair)
    cells = [entry for entry in cluster.submitted() if entry.split()[1] == "x"]
    assert len(cells) == 1, "the job of both new cells"
    assert compared(pair)[0] == "submitted"


@pytest.mark.slow
def test_a_late_arm_and_an_arm_that_is_not_named_get_the_new_seeds(
    small: list[str], orchestrate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small, "declared=[width]", "name=x", "launcher=debug", "decide.min=1"]
    two, late = (
        "++arms={a: ['width=uniform'], b: ['width=ramp']}",
        "++arms={a: ['width=uniform'], c: ['width=x_shape']}",
    )
    assert orchestrate(*words, two, "seeds=auto", "decide.max=1") == 0
    assert orchestrate(*words, late, "seeds=[0,1]") == 0
    capsys.readouterr()
    more = ("seeds=auto", "decide.max=3", "train.keep_checkpoints=1")
    assert orchestrate(*words, late, *more) == 0
    told = capsys.readouterr().out
    assert names(told, "b/seed=1 first", "Not decided with 2 pairs", "seed 2 of every arm", "Not decided with 3 pairs")
    experiment = resume.reopen(tmp_path / "outputs/x")
    assert [cell.id for cell in experiment.cells if is_finished(cell.directory)] == [
        f"{arm}/seed={seed}" for arm in "abc" for seed in range(3)
    ]
    kept = {cell.id: cell.config.train.keep_checkpoints for cell in experiment.cells}
    assert (kept["b/seed=0"], kept["b/seed=1"], kept["b/seed=2"]) == (None, 1, 1), "new cells run as this launch's do"


def test_a_budget_stops_the_launch_and_the_same_command_goes_on(
    small: list[str], orchestrate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small, "+experiment=width_ablation", "seeds=[0,1]", "launcher=debug", "sidecar.interval=4"]
    assert orchestrate(*words, "budget.core_hours=1e-6") == 2
    root = tmp_path / "outputs/width_ablation"
    assert len([*root.glob("*/seed=*/metrics.jsonl")]) == 1  # the first tells what a cell takes
    said = capsys.readouterr().err
    assert "budget.core_hours=1e-06" in said
    assert "uniform/seed=1, variable/seed=0, variable/seed=1" in said
    assert orchestrate(*words, "budget.core_hours=1") == 0
    assert len([*root.glob("*/seed=*/metrics.jsonl")]) == 4


def test_pairs_until_decided_end_with_the_budget(
    small: list[str], orchestrate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small, "+experiment=width_ablation", "seeds=auto", "launcher=debug", "sidecar.interval=4", "decide.min=2"]
    assert orchestrate(*words, "decide.max=2") == 0
    capsys.readouterr()
    assert orchestrate(*words, "decide.max=3", "budget.core_hours=1e-6") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Not decided with 2 pairs: budget.core_hours=1e-06" in said
    assert len([*(tmp_path / "outputs/width_ablation").glob("*/seed=*")]) == 4
