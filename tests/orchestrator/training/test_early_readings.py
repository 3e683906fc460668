"""Readings at the powers of two below `forensics.every`."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.experiments.experiment import Cell
from orchestrator.experiments.readings import Readings
from orchestrator.storage import checkpoint, metrics_log
from orchestrator.storage.steps import readings_in
from tests.orchestrator.training.cells import Crash, CrashAt, complete, fingerprints, new_cell, rows, run_with

EARLY = ("forensics.early=true", "train.keep_states=null")
READ = [0, 1, 2, 4, 6, 12]  # every six steps, and 1, 2 and 4 below


@pytest.fixture(scope="module")
def early(small_cell: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Cell:
    cell = new_cell([*small_cell, *EARLY], tmp_path_factory.mktemp("early"))
    assert complete(cell)
    return cell


def test_they_are_made_have_their_losses_and_leave_training_as_it_is(early: Cell, whole: Cell) -> None:
    assert list(readings_in(early.directory)) == READ
    records = metrics_log.read(early.directory / "metrics.jsonl")
    assert [record["step"] for record in records if "heldout" in record] == [0, 1, 2, 4, 8, 12]
    assert [record["digest"] for record in records if record["step"] % 2 == 0] == [row["digest"] for row in rows(whole)]
    found, plain = fingerprints(early), fingerprints(whole)
    last = "checkpoints/step_00000012/model.safetensors"
    assert found[last] == plain[last]


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resumed_run_makes_each_once(early: Cell, small_cell: tuple[str, ...], tmp_path: Path, at: int) -> None:
    cell = new_cell([*small_cell, *EARLY], tmp_path)
    with pytest.raises(Crash):
        run_with(cell, CrashAt(at))
    assert complete(cell)
    assert fingerprints(cell) == fingerprints(early)
    assert rows(cell) == rows(early)
    assert not list(cell.directory.glob("forensics/*.replaced-*"))
    assert Readings(cell.directory, cell.config).wanted() == []


def test_one_that_is_lost_is_wanted_again(small_cell: tuple[str, ...], tmp_path: Path) -> None:
    cell = new_cell([*small_cell, *EARLY], tmp_path)
    assert complete(cell)
    readings = Readings(cell.directory, cell.config)
    readings_in(cell.directory)[2].unlink()
    assert [checkpoint.step_of(path) for path in readings.wanted()] == [2]
