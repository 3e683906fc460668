"""Interventions on the checkpoints of a cell while it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.schema import EditName
from orchestrator.experiments.experiment import Cell
from orchestrator.experiments.readings import Readings
from orchestrator.intervene import main
from orchestrator.interventions.edits import EDITS
from orchestrator.storage import checkpoint
from tests.naming import naming
from tests.orchestrator.training.cells import Crash, CrashAt, complete, fingerprints, new_cell, run_with

WANTED = ("interventions.every=12", "interventions.documents=4", "interventions.edits=[delete,repeat]")


def files(cell: Cell) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((cell.directory / "interventions").glob("step_*.json"))}


@pytest.fixture(scope="module")
def damaged(small_cell: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Cell:
    cell = new_cell([*small_cell, *WANTED], tmp_path_factory.mktemp("damaged"))
    assert complete(cell)
    return cell


def test_every_name_of_the_configuration_is_an_edit() -> None:
    assert [edit.value for edit in EditName] == list(EDITS)


def test_they_are_what_the_command_finds_and_training_is_the_same(damaged: Cell, whole: Cell, tmp_path: Path) -> None:
    assert list(files(damaged)) == ["step_00000000.json", "step_00000012.json"]
    for name, text in files(damaged).items():
        target = tmp_path / name
        path = damaged.directory / "checkpoints" / Path(name).stem
        assert main([str(path), "--edits", "delete,repeat", "--documents", "4", "--json", str(target)]) == 0
        found, again = json.loads(text), json.loads(target.read_text())
        assert found["layers"] == again["layers"]
        assert found["key"]["checkpoint"] == checkpoint.key(path)
    assert fingerprints(damaged) == fingerprints(whole)


def test_a_crash_leaves_none_behind_and_none_out(damaged: Cell, small_cell: tuple[str, ...], tmp_path: Path) -> None:
    cell = new_cell([*small_cell, *WANTED], tmp_path)
    with pytest.raises(Crash):
        run_with(cell, CrashAt(9))
    assert complete(cell)
    assert {name: json.loads(text)["layers"] for name, text in files(cell).items()} == {
        name: json.loads(text)["layers"] for name, text in files(damaged).items()
    }


def test_they_can_be_asked_for_later_and_otherwise(small_cell: tuple[str, ...], tmp_path: Path) -> None:
    cell = new_cell(small_cell, tmp_path)
    assert complete(cell)
    assert not Readings(cell.directory, cell.config).wanted()
    later = new_cell([*small_cell, "interventions.every=12", "interventions.documents=2"], tmp_path)
    readings = Readings(later.directory, later.config)
    assert not readings.unread()
    due = readings.wanted()
    assert [checkpoint.step_of(path) for path in due] == [0, 12]
    for path in due:
        assert readings.read(path)
    assert not readings.wanted()
    other = new_cell([*small_cell, "interventions.every=12", "interventions.edits=[swap]"], tmp_path)
    again = Readings(other.directory, other.config)
    for path in again.wanted():
        again.read(path)
    layers = json.loads(files(later)["step_00000012.json"])["layers"]
    assert all(list(layer["damage"]) == ["swap"] for layer in layers)
    assert list((cell.directory / "interventions").glob("*.replaced*"))


def test_steps_without_a_reading_are_refused(small_cell: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming("interventions.every=7", "forensics.every=6")):
        new_cell([*small_cell, "interventions.every=7"], tmp_path)
    with pytest.raises(UserError, match=naming("interventions.edits", "delet")):
        new_cell([*small_cell, "interventions.edits=[delet]"], tmp_path)
