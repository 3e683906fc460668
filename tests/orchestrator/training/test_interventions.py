"""Interventions on the checkpoints of a cell while it trains."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.common.errors import UserError
from orchestrator.experiments.experiment import Cell
from orchestrator.experiments.readings import Readings
from orchestrator.intervene import main
from orchestrator.jobs.readers import InThread
from orchestrator.storage import checkpoint, locks
from tests.naming import naming
from tests.orchestrator.training.cells import Crash, CrashAt, complete, fingerprints, new_cell, run_with
from tests.waiting import wait_for

WANTED = ("interventions.every=12", "interventions.documents=4", "interventions.edits=[delete,repeat]")


def files(cell: Cell) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((cell.directory / "interventions").glob("step_*.json"))}


def layers_of(cell: Cell) -> dict[str, list[Any]]:
    return {name: json.loads(text)["layers"] for name, text in files(cell).items()}


@pytest.fixture(scope="module")
def damaged(small_cell: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Cell:
    cell = new_cell([*small_cell, *WANTED], tmp_path_factory.mktemp("damaged"))
    assert complete(cell)
    return cell


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
    assert layers_of(cell) == layers_of(damaged)


@pytest.fixture
def undone(damaged: Cell, tmp_path: Path) -> Cell:
    """A copy of the finished cell without its interventions."""
    shutil.copytree(damaged.directory, tmp_path / "cell")
    shutil.rmtree(tmp_path / "cell/interventions")
    return replace(damaged, directory=tmp_path / "cell")


def test_of_two_that_come_at_once_one_intervenes(undone: Cell, damaged: Cell) -> None:
    readings = Readings(undone.directory, undone.config)
    due = readings.wanted()
    with ThreadPoolExecutor(2) as pool, locks.hold(undone.directory / ".readings.lock"):
        calls = [pool.submit(readings.read, path) for path in due for _ in range(2)]
        time.sleep(0.5)  # until two wait for the lock
        held = [call.done() for call in calls]
    assert not any(held)
    assert sum(call.result() for call in calls) == len(due)
    assert layers_of(undone) == layers_of(damaged)
    assert not list((undone.directory / "interventions").glob("*.replaced"))


def test_what_was_interrupted_goes_on_where_it_was(
    undone: Cell, damaged: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.interventions.intervene.AT_ONCE", 20)  # a batch of one document
    readings, asked = Readings(undone.directory, undone.config), iter(range(1000))
    path, _ = readings.wanted()
    trials = 2 * len(json.loads(files(damaged)["step_00000000.json"])["layers"])  # of a batch
    assert not readings.read(path, give_up=lambda: next(asked) >= 2 * trials)
    assert files(undone) == {}
    (partial,) = (undone.directory / "interventions").iterdir()
    first, *others = partial.read_text().splitlines()
    assert len(others) + 1 == 2 * (1 + trials) + 2  # of each batch the intact losses, then every trial; one of a third
    digest, place, values = json.loads(first)
    values[0] = [1e6]  # an intact loss, by which the next call is known to have taken the line
    partial.write_text("\n".join([json.dumps([digest, place, values]), *others, ""]))
    assert readings.read(path)
    assert max(json.loads(files(undone)["step_00000000.json"])["intact"].values()) > 1e3
    assert not partial.exists()


def test_a_reader_that_ends_leaves_interventions_under_way(undone: Cell) -> None:
    readings = Readings(undone.directory, undone.config)
    reader = InThread(readings)
    with locks.hold(undone.directory / ".readings.lock"):
        for path in readings.wanted():
            reader.add(path)
        ending = threading.Thread(target=reader.close)
        ending.start()
        wait_for(reader.ending.is_set)
    ending.join()
    assert files(undone) == {}
    assert len(readings.wanted()) == 2


def test_interventions_under_way_keep_others_waiting(undone: Cell) -> None:
    """Each trial is a sign of life, on the lock that the others wait for."""
    readings, signs, over = Readings(undone.directory, undone.config), set[int](), threading.Event()
    lock = undone.directory / ".readings.lock"

    def look() -> None:
        while not over.wait(0.0005):
            signs.add(lock.stat().st_mtime_ns if lock.exists() else 0)

    watcher = threading.Thread(target=look)
    watcher.start()
    assert readings.read(readings.wanted()[0])
    over.set()
    watcher.join()
    assert len(signs) > 3  # without a file, locked, and after trials


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


def test_those_of_another_schema_are_made_again(undone: Cell, damaged: Cell) -> None:
    shutil.copytree(damaged.directory / "interventions", undone.directory / "interventions")
    readings = Readings(undone.directory, undone.config)
    first, second = sorted((undone.directory / "interventions").iterdir())
    older = json.loads(first.read_text())
    del older["key"]["schema"]  # as it was written once, under this schema
    first.write_text(json.dumps(older))
    second.write_text(json.dumps(json.loads(second.read_text()) | {"schema": 1}))
    assert [path.name for path in readings.wanted()] == [second.stem]
    assert readings.read(readings.wanted()[0])
    assert not readings.wanted()
    assert layers_of(undone) == layers_of(damaged)


def test_steps_without_a_reading_are_refused(small_cell: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming("interventions.every=7", "forensics.every=6")):
        new_cell([*small_cell, "interventions.every=7"], tmp_path)
    with pytest.raises(UserError, match=naming("interventions.edits", "delet")):
        new_cell([*small_cell, "interventions.edits=[delet]"], tmp_path)
