"""The terminal may go away, or lack letters: training does not end for it without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.storage import checkpoint, metrics_log
from orchestrator.storage.event_log import EventLog
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

ARMS = ("name=mine", "++arms={a: [], b: ['width=ramp']}", "declared=[width]", "seeds=[0]")
LONG = ("train.steps=20000", "train.checkpoint_every=20000", "forensics.every=20000", "train.eval_every=20000")
LAUNCHERS = ("debug", "local")


def start(
    overrides: list[str], *more: str, before: Callable[[], object] | None = None, **options: object
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "orchestrator", *ARMS, *overrides, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    before = before or (lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # which nohup in front would ignore
    return subprocess.Popen(command, start_new_session=True, preexec_fn=before, **pipes)  # type: ignore[call-overload]


def states(directory: Path) -> dict[str, str]:
    return {cell: entry.state for cell, entry in EventLog(directory).last().items()}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_reader_that_leaves_ends_nothing(small: list[str], tmp_path: Path, launcher: str) -> None:
    process = start(small, f"launcher={launcher}")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert b"Traceback" not in said
    assert b"BrokenPipe" not in said
    assert states(tmp_path / "outputs/mine") == {"a/seed=0": "done", "b/seed=0": "done"}
    assert (tmp_path / "outputs/mine/comparison/report.html").is_file()


def test_streams_that_are_closed_from_the_start_end_nothing(small: list[str], tmp_path: Path) -> None:
    process = start(small, "launcher=debug", before=lambda: [os.close(number) for number in (1, 2)])
    assert process.wait(300) == 0
    assert set(states(tmp_path / "outputs/mine").values()) == {"done"}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_end_of_the_terminal_saves_first(small: list[str], tmp_path: Path, launcher: str) -> None:
    process = start(small, *LONG, f"launcher={launcher}")
    directory = tmp_path / "outputs/mine"
    log = directory / "a/seed=0/metrics.jsonl"
    wait_for(lambda: any(record["step"] > 10 for record in metrics_log.backwards(log)))
    os.killpg(process.pid, signal.SIGHUP)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    entry = EventLog(directory).last()["a/seed=0"]
    assert entry.state == "stopped"
    assert ("SIGHUP" if launcher == "debug" else "SIG") in entry.reason
    newest = checkpoint.saved(directory / "a/seed=0/checkpoints")[-1]
    assert 10 < checkpoint.step_of(newest) < 20000


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_under_nohup_the_end_of_the_terminal_is_ignored(small: list[str], tmp_path: Path, launcher: str) -> None:
    process = start(small, f"launcher={launcher}", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    log = tmp_path / "outputs/mine/a/seed=0/metrics.jsonl"
    wait_for(log.exists)
    os.killpg(process.pid, signal.SIGHUP)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert set(states(tmp_path / "outputs/mine").values()) == {"done"}


@pytest.mark.parametrize("mode", ["0", "1"])
def test_a_locale_without_letters_will_do(small: list[str], tmp_path: Path, mode: str) -> None:
    (tmp_path / "my/experiment").mkdir(parents=True)
    text = (
        "# @package _global_\nquestion: Größer → besser?\n"
        "arms: {ä: [], b: ['width=ramp']}\ndeclared: [width]\nseeds: [0]"
    )
    (tmp_path / "my/experiment/mine.yaml").write_text(text, encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": mode, "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    arms = text if mode == "1" else text.replace("ä:", "a:")  # without UTF-8, Python names no such file
    (tmp_path / "my/experiment/mine.yaml").write_text(arms, encoding="utf-8")
    command = [f"--config-dir={tmp_path}/my", "+experiment=mine", *small, "launcher=local"]
    ran = [sys.executable, "-m", "orchestrator", *command]
    done = subprocess.run(ran, capture_output=True, env={**os.environ, **locale}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"besser?" in done.stdout
    report = (tmp_path / "outputs/mine/comparison/report.html").read_text(encoding="utf-8")
    assert "Größer → besser?" in report
    assert "Größer → besser?" in (tmp_path / "outputs/mine/experiment.yaml").read_text(encoding="utf-8")
