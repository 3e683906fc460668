"""A cell's process leaves its job according to Slurm's answer: real cells, and a Slurm that only answers."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator import job
from orchestrator.config.compose import CONF, compose
from orchestrator.experiments.experiment import experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.jobs import worker
from orchestrator.schedulers import Slurm
from orchestrator.schedulers.scheduler import STARTED_BY
from orchestrator.storage import lease, metrics_log
from orchestrator.storage.event_log import EventLog
from tests.naming import names
from tests.waiting import PATIENCE

CELL = "main/seed=0"
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def cell(small_cell: Sequence[str], tmp_path: Path) -> Path:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = experiment_of(
            [*small_cell, "launcher=slurm", "name=x", f"root={tmp_path}", f"data.cache_dir={tmp_path}/data"], compose
        )
    open_directory(experiment)
    return experiment.cells[0].directory


def answers(directory: Path, state: str, restarts: int, left: str) -> Path:
    """Commands that answer as Slurm does, and write down what they were asked."""
    directory.mkdir()
    cases = f'*%L*) echo "{left}";; *RestartCnt*) echo "{state} {restarts}";; *) echo {state};;'
    for name, said in {"squeue": f'case "$*" in {cases} esac', "scontrol": "true"}.items():
        (directory / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {directory}/asked\n{said}\n')
        (directory / name).chmod(0o755)
    return directory


def _run(cell: Path, commands: Path, number: int) -> None:
    os.environ.update(PATH=f"{commands}:/usr/bin:/bin", SLURM_JOB_ID="7", **{STARTED_BY: "slurm"})
    started = worker.environment

    def signalled(*about: object) -> object:  # as it says that it begins
        os.kill(os.getpid(), number)
        return started(*about)  # type: ignore[arg-type]

    worker.environment = signalled  # type: ignore[assignment]
    worker.run_job(cell)


@pytest.mark.parametrize(
    ("number", "state", "restarts", "left", "word", "named", "requeued"),
    [
        (signal.SIGTERM, "COMPLETING", 0, "9:00", "stopped", ["cancelled", "SIGTERM"], False),
        (signal.SIGTERM, "COMPLETING", 1, "9:00", "preempted", ["SIGTERM"], False),
        (signal.SIGTERM, "PENDING", 1, "9:00", "preempted", ["SIGTERM"], False),
        (signal.SIGUSR2, "COMPLETING", 0, "9:00", "preempted", ["SIGUSR2"], False),
        (signal.SIGUSR2, "RUNNING", 0, "1-00:09:00", "preempted", ["SIGUSR2"], True),
        (signal.SIGUSR2, "RUNNING", 0, "UNLIMITED", "preempted", ["SIGUSR2"], True),
        (signal.SIGUSR2, "RUNNING", 0, "1:50", "crashed", ["first step", "launcher.timeout_hours"], False),
    ],
)
def test_how_a_cell_leaves_its_job(
    cell: Path,
    tmp_path: Path,
    number: int,
    state: str,
    restarts: int,
    left: str,
    word: str,
    named: list[str],
    requeued: bool,
) -> None:
    commands = answers(tmp_path / "bin", state, restarts, left)
    process = FORK.Process(target=_run, args=(cell, commands, number))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == worker.REQUEUED
    *_, last = EventLog(cell.parents[1]).of(CELL)
    assert last["state"] == word
    assert names(last["reason"], *named)
    assert ("scontrol requeue 7" in (commands / "asked").read_text()) == requeued
    claim = lease.newest(cell)
    assert claim
    assert not claim.is_alive()


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("1:50", 110),
        ("2:03:04", 7384),
        ("1-02:03:04", 93784),
        ("0:00", 0),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, seconds: float | None
) -> None:
    commands = answers(tmp_path / "bin", "RUNNING", 0, told)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    assert Slurm(tmp_path).seconds_left("7") == (float("inf") if seconds is None else seconds)


def test_attempts_are_counted_on_where_their_claims_were_deleted(cell: Path) -> None:
    """Else records of the next one would look like those of one that it follows."""
    assert worker.run_job(cell) == "done"
    whole = metrics_log.read(cell / "metrics.jsonl")
    EventLog(cell.parents[1]).append(CELL, "running", attempt=3)  # and killed
    shutil.rmtree(cell / "attempts")
    shutil.rmtree(max((cell / "checkpoints").glob("step_*")))
    log = cell / "metrics.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    assert worker.run_job(cell) == "done"
    claim = lease.newest(cell)
    assert claim
    assert claim.number == 4
    again = metrics_log.read(cell / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in again] == [(r["step"], r["loss"]) for r in whole]
    assert again[-1]["attempt"] == 4


def test_a_broken_metrics_log_fails_the_cell_on_record(cell: Path) -> None:
    (cell / "metrics.jsonl").write_text("garbage\n")
    assert worker.run_job(cell) == "failed"
    last = EventLog(cell.parents[1]).last()[CELL]
    assert last.state == "failed"
    assert names(last.reason, cell / "metrics.jsonl", "JSON")


def test_by_hand_it_says_why_nothing_happens(cell: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert job.main([str(tmp_path / "nosuch")]) == 2
    assert names(capsys.readouterr().err, tmp_path / "nosuch", "config.yaml")
    assert job.main([str(cell)]) == 0
    assert capsys.readouterr().out == ""
    assert job.main([str(cell)]) == 0
    assert names(capsys.readouterr().out, cell, "done")


def test_a_word_that_comes_too_late_does_not_count(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    for state, attempt in (
        ("running", 1),
        ("submitted", 2),
        ("crashed", 1),
        ("running", 2),
        ("done", 2),
        ("crashed", 1),
    ):
        events.append(CELL, state, attempt=attempt)
    assert [r["state"] for r in events.of(CELL)] == ["running", "submitted", "crashed", "running", "done"]
    assert events.last()[CELL].state == "done"
