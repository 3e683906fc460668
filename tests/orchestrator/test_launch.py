"""Real processes, really killed: what the finished experiment holds must not depend on it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator import checkpoint, launch, ledger, status
from orchestrator.manifest import Manifest

ARMS = ("name=pair", "++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "seeds=[0]")
LONGER = ("train.steps=120", "train.checkpoint_every=20", "forensics.every=60")


def start(overrides: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "orchestrator", *ARMS, *overrides]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)


def cell_process(directory: Path, cell: str) -> int | None:
    """Process id of the running cell, from the manifest."""
    entry = Manifest(directory).last().get(cell)
    return int(entry.job) if entry and entry.state == "running" else None


def step_reached(directory: Path, cell: str, step: int) -> Callable[[], bool]:
    path = directory / cell / "ledger.jsonl"
    return lambda: any(record["step"] >= step for record in ledger.tail(path))


def final_weights(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.glob("*/seed=*/checkpoints/step_00000120/model.safetensors"))
    }


@pytest.fixture
def leftovers(tmp_path: Path) -> Iterator[None]:
    """Whatever a failing test leaves running ends with it."""
    yield
    for manifest in tmp_path.glob("*/*/manifest.jsonl"):
        for record in ledger.read(manifest):
            if record["job"].isdigit():
                with suppress(ProcessLookupError):
                    os.kill(int(record["job"]), signal.SIGKILL)


@pytest.mark.usefixtures("leftovers")
def test_killed_cells_and_a_killed_launcher_change_nothing(small_cell: tuple[str, ...], tmp_path: Path) -> None:
    overrides = [*small_cell, *LONGER]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start([*overrides, f"root={whole}"], tmp_path / "whole.log").wait(240) == 0, (
        tmp_path / "whole.log"
    ).read_text()
    expected = final_weights(whole / "pair")
    assert len(expected) == 2

    digests = [
        {r["step"]: r["digest"] for r in ledger.read(whole / "pair" / cell / "ledger.jsonl")}
        for cell in ("a/seed=0", "b/seed=0")
    ]
    assert digests[0] == digests[1], "both arms saw the same batches"

    log, directory = tmp_path / "broken.log", broken / "pair"
    first = start([*overrides, f"root={broken}"], log)
    wait_for(step_reached(directory, "a/seed=0", 30))
    victim = cell_process(directory, "a/seed=0")
    assert victim is not None
    os.kill(victim, signal.SIGKILL)  # one cell dies; the other goes on
    assert first.wait(240) == 2
    last = Manifest(directory).last()
    assert last["a/seed=0"].state == "failed"
    assert "ended without a word" in last["a/seed=0"].reason
    assert last["b/seed=0"].state == "done"
    assert "a/seed=0 failed" in log.read_text()

    second = start([*overrides, f"root={broken}"], log)  # resumes the dead cell, then the launcher dies
    wait_for(lambda: cell_process(directory, "a/seed=0") is not None)
    second.kill()
    second.wait()
    third = start([*overrides, f"root={broken}"], log)  # finds the orphan, or what it left
    assert third.wait(240) == 0, log.read_text()

    assert final_weights(directory) == expected
    for cell in ("a/seed=0", "b/seed=0"):
        steps = [r["step"] for r in ledger.read(directory / cell / "ledger.jsonl")]
        assert steps == [r["step"] for r in ledger.read(whole / "pair" / cell / "ledger.jsonl")]
    assert any("resumed at step" in r["reason"] for r in ledger.read(directory / "manifest.jsonl"))

    finished = (directory / "manifest.jsonl").read_bytes()
    assert start([*overrides, f"root={broken}"], log).wait(120) == 0
    assert "Nothing is left to do" in log.read_text()
    assert (directory / "manifest.jsonl").read_bytes() == finished


@pytest.mark.usefixtures("leftovers")
def test_an_interrupt_saves_every_cell_and_a_second_launcher_is_refused(
    small_cell: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = [*small_cell, *LONGER, "train.steps=100000", f"root={tmp_path}/out"]
    log, directory = tmp_path / "log", tmp_path / "out/pair"
    launcher = start(overrides, log)
    wait_for(step_reached(directory, "a/seed=0", 10))
    rival = subprocess.run(
        [sys.executable, "-m", "orchestrator", *ARMS, *overrides], capture_output=True, text=True, timeout=120
    )
    assert rival.returncode == 2
    assert "is being run by another process" in rival.stderr
    os.killpg(launcher.pid, signal.SIGINT)  # Ctrl-C reaches the whole group
    assert launcher.wait(120) == 130, log.read_text()
    for cell in status.read_status(directory):
        assert cell.state in ("stopped", "next")
        if cell.state == "stopped":
            newest, _ = checkpoint.newest(directory / cell.cell / "checkpoints")
            assert newest is not None
            assert 0 <= checkpoint.step_of(newest) - cell.step < 2  # log_every: no step was lost
    assert "the same command goes on" in log.read_text()


def test_status_of_no_experiment_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([str(tmp_path)]) == 2
    assert "holds no experiment" in capsys.readouterr().err


def test_a_cell_can_be_run_by_itself(
    orchestrate: Callable[..., int], small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a job does, for a job script written by hand."""
    assert orchestrate(*small, "launcher=debug", "name=x", "train.steps=4", "forensics.every=4") == 0
    cell = tmp_path / "outputs/x/main/seed=0"
    (tmp_path / "outputs/x/manifest.jsonl").unlink()
    assert launch.main([str(cell)]) == 0
    assert Manifest(cell.parents[1]).last()["main/seed=0"].reason == ""
    assert [e["state"] for e in ledger.read(tmp_path / "outputs/x/manifest.jsonl")] == ["running", "done"]
    assert launch.main([str(tmp_path)]) == 2
    assert "usage" in capsys.readouterr().err
