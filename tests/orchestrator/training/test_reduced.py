"""Checkpoints that training has reduced to their weights are read as they were when their state was there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.experiments.experiment import Cell
from orchestrator.forensics.__main__ import main
from orchestrator.storage import checkpoint
from tests.orchestrator.training.cells import complete, new_cell

OF_STATE = "stuck_fraction"


@pytest.fixture(scope="module")
def cell(small_cell: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """Its newest checkpoint alone keeps the optimizer's state."""
    cell = new_cell([*small_cell, "train.keep_states=1"], tmp_path_factory.mktemp("reduced"))
    assert complete(cell)
    return cell


def read(path: Path, target: Path, *options: str) -> dict[str, Any]:
    assert main([str(path), "--json", str(target), *options]) in (0, 1)
    return dict(json.loads(target.read_text()))


@pytest.mark.parametrize("scoring", ["calibrated", "paper"])
def test_a_run_has_the_roles_of_its_own_readings(cell: Cell, scoring: str, tmp_path: Path) -> None:
    run = read(cell.directory / "checkpoints", tmp_path / "run.json", "--scoring", scoring)
    recorded = [json.loads(path.read_text()) for path in sorted((cell.directory / "forensics").glob("step_*.json"))]
    by_step = {of["step"]: of for of in run["checkpoints"]}
    assert len(recorded) > 2
    for then in recorded:
        for layer, before in zip(by_step[then["step"]]["layers"], then["layers"], strict=True):
            assert layer["role"] == before["scorings"][scoring]["role"]
            assert layer["scores"] == before["scorings"][scoring]["scores"]
            assert layer["measures"][OF_STATE] == before["measures"][OF_STATE]


def test_a_checkpoint_by_itself_too_unless_its_reading_is_gone(cell: Cell, tmp_path: Path) -> None:
    saved = checkpoint.saved(cell.directory / "checkpoints")
    read_then = {path.stem for path in (cell.directory / "forensics").glob("step_*.json")}
    *_, older = (path for path in saved if checkpoint.is_reduced(path) and path.name in read_then)
    reading = cell.directory / "forensics" / f"{older.name}.json"
    document = json.loads(reading.read_text())
    assert read(older, tmp_path / "a.json")["layers"] == document["layers"]
    kept = reading.read_text()
    for changed in ({"checkpoint": "0" * 64}, {"definitions": 1}):
        reading.write_text(json.dumps(document | {"key": document["key"] | changed}))
        assert read(older, tmp_path / "b.json")["layers"][0]["measures"][OF_STATE] is None
    reading.unlink()
    assert read(older, tmp_path / "c.json")["layers"][0]["measures"][OF_STATE] is None
    reading.write_text(kept)
