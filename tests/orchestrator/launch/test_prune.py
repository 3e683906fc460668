"""A finished cell stays finished, whatever became of its checkpoints; `status --prune` deletes them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import compare, export, status
from orchestrator.config import load
from orchestrator.experiments.readings import Readings
from orchestrator.jobs import worker
from orchestrator.storage import checkpoint, lease, metrics_log
from orchestrator.storage.event_log import EventLog
from tests.naming import names

Orchestrate = Callable[..., int]
ARMS = ("name=mine", "++arms={a: [], b: ['width=ramp']}", "declared=[width]")
COMMON = (*ARMS, "launcher=debug")


@pytest.fixture
def finished(trained: Callable[..., Path]) -> Path:
    """An experiment of two finished cells."""
    return trained(*ARMS, "seeds=[0]")


def results(directory: Path) -> dict[str, str]:
    """File → sha256, of the metrics logs and readings."""
    files = [*directory.glob("*/seed=0/metrics.jsonl"), *directory.glob("*/seed=0/forensics/*.json")]
    return {str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def attempts(directory: Path, cell: str) -> int:
    return sum(event["state"] == "running" for event in EventLog(directory).of(cell))


def all_gone(cell: Path) -> None:
    shutil.rmtree(cell / "checkpoints")


def newest_gone(cell: Path) -> None:
    shutil.rmtree(checkpoint.path_of(cell / "checkpoints", 12))


def state_gone(cell: Path) -> None:
    (checkpoint.path_of(cell / "checkpoints", 12) / "optimizer.safetensors").unlink()


@pytest.mark.parametrize("harm", [all_gone, newest_gone, state_gone])
def test_a_finished_cell_without_checkpoints_is_not_trained_again(
    finished: Path, orchestrate: Orchestrate, small: list[str], harm: Callable[[Path], None]
) -> None:
    before = results(finished)
    for arm in ("a", "b"):
        harm(finished / arm / "seed=0")
    assert orchestrate(*small, *COMMON, "seeds=[0,1]") == 0  # a seed is added
    assert {name: digest for name, digest in results(finished).items() if "seed=0" in name} == before
    assert [attempts(finished, f"{arm}/seed={seed}") for arm in "ab" for seed in (0, 1)] == [1, 1, 1, 1]
    assert json.loads((finished / "comparison/verdict.json").read_text())["pairs"][1]["seed"] == 1


@pytest.mark.parametrize("lost", ["reading", "log"])
def test_what_a_finished_cell_needs_a_checkpoint_for_is_said(
    finished: Path, orchestrate: Orchestrate, small: list[str], capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    cell = finished / "a/seed=0"
    all_gone(cell)
    file = cell / ("metrics.jsonl" if lost == "log" else "forensics/step_00000012.json")
    if lost == "log":
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    else:
        file.unlink()
    kept = results(finished)
    assert orchestrate(*small, *COMMON, "seeds=[0]") == 2
    assert names(capsys.readouterr().err, "a/seed=0 failed:", file)
    assert results(finished) == kept, "nothing is set aside or trained again"


def test_a_cell_whose_directory_was_deleted_is_trained_again(
    finished: Path, orchestrate: Orchestrate, small: list[str]
) -> None:
    before = results(finished)
    shutil.rmtree(finished / "a/seed=0")
    assert orchestrate(*small, *COMMON, "seeds=[0]") == 0
    assert results(finished).keys() == before.keys()
    assert worker.is_finished(finished / "a/seed=0")
    assert attempts(finished, "a/seed=0") == 2


def test_weights_that_are_left_are_read(finished: Path, orchestrate: Orchestrate, small: list[str]) -> None:
    assert status.main([str(finished), "--prune", "2"]) == 0
    cell = finished / "a/seed=0"
    (cell / "forensics/step_00000012.json").unlink()
    assert not worker.is_finished(cell)
    assert orchestrate(*small, *COMMON, "seeds=[0]") == 0
    assert worker.is_finished(cell)
    assert metrics_log.trained_to(cell / "metrics.jsonl") == 12
    assert [path.name for path in checkpoint.saved(cell / "checkpoints")] == ["step_00000008", "step_00000012"]


def test_interventions_on_checkpoints_that_are_gone_are_named(
    finished: Path, orchestrate: Orchestrate, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main([str(finished), "--prune", "1"]) == 0
    capsys.readouterr()
    assert orchestrate(*small, *COMMON, "seeds=[0]", "interventions.every=6", "interventions.documents=1") == 0
    assert names(capsys.readouterr().err, "a/seed=0", "b/seed=0")
    cell = finished / "a/seed=0"
    assert Readings(cell, load.from_file(cell / "config.yaml")).lost() == [0, 6]
    assert (cell / "interventions/step_00000012.json").is_file()


@pytest.mark.parametrize("keep", [0, 1, 9])
def test_pruning_keeps_the_newest_weights_and_all_results(
    finished: Path, keep: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cell, before = finished / "a/seed=0", results(finished)
    weights = {p.parent.name: p.read_bytes() for p in cell.glob("checkpoints/*/model.safetensors")}
    checkpoint.set_aside(checkpoint.path_of(cell / "checkpoints", 4))
    held = sum(p.stat().st_size for p in finished.glob("*/*/checkpoints/**/*") if p.is_file())
    capsys.readouterr()
    assert status.main([str(finished), "--prune", str(keep)]) == 0
    assert names(capsys.readouterr().out, "2 finished cells")
    left = {p.parent.name: p.read_bytes() for p in cell.glob("checkpoints/*/model.safetensors")}
    newest = sorted(weights.keys() - {"step_00000004"})[-keep:] if keep else []
    assert left == {name: weights[name] for name in newest}
    assert not [*finished.glob("*/*/checkpoints/*/optimizer.safetensors"), *finished.glob("*/*/checkpoints/*.corrupt*")]
    assert sum(p.stat().st_size for p in finished.glob("*/*/checkpoints/**/*") if p.is_file()) < held
    assert results(finished) == before
    assert compare.main([str(finished)]) == 0
    assert (finished / "comparison/report.html").is_file()
    assert status.main([str(finished)]) == 0
    capsys.readouterr()
    assert export.main([str(cell), str(tmp_path / "exported")]) == (0 if keep else 2)
    assert keep or names(capsys.readouterr().err, cell, "checkpoint")


def test_cells_that_run_or_are_unfinished_are_left_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "a/seed=0/forensics/step_00000006.json").unlink()  # it is read again
    states = {arm: len([*finished.glob(f"{arm}/seed=0/checkpoints/*/optimizer.safetensors")]) for arm in "ab"}
    with lease.hold(finished / "b/seed=0"):
        capsys.readouterr()
        assert status.main([str(finished), "--prune", "0"]) == 0
    assert names(capsys.readouterr().out, "a/seed=0", "b/seed=0", "0 finished cells")
    assert states == {arm: len([*finished.glob(f"{arm}/seed=0/checkpoints/*/optimizer.safetensors")]) for arm in "ab"}
    assert all(states.values())
