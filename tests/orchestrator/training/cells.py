"""Small cells, trained to the end or to a crash, and what is equal in two of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator.config.compose import CONF, compose
from orchestrator.experiments.experiment import Cell, Experiment, experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.jobs.readers import reader_for
from orchestrator.storage import metrics_log
from orchestrator.training import trainer
from orchestrator.training.callbacks import callbacks_for
from orchestrator.training.loop import StopSignal, train, train_cell
from orchestrator.training.trainer import Callback, Trainer

TIMINGS = {"seconds", "tokens_per_second", "mfu", "attempt"}


class Crash(BaseException):
    """The process dies here: nothing may catch it."""


class CrashAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Trainer) -> None:
        if run.step == self.step:
            raise Crash


class SignalAt(Callback):
    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def after_step(self, run: Trainer) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), self.number)


class Clock:
    """A clock that only tests move, in the place of the module `time`."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def clock_of_seconds(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for the trainer, on which every update takes a second."""
    clock, update = Clock(), Trainer.update

    def update_in_a_second(run: Trainer) -> None:
        update(run)
        clock.now += 1

    monkeypatch.setattr(trainer, "time", clock)
    monkeypatch.setattr(Trainer, "update", update_in_a_second)
    return clock


def new_experiment(overrides: Sequence[str], root: Path) -> Experiment:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = experiment_of([*overrides, f"root={root}"], compose)
        open_directory(experiment)
    return experiment


def new_cell(overrides: Sequence[str], root: Path) -> Cell:
    return new_experiment(overrides, root).cells[0]


def run_with(cell: Cell, *extra: Callback) -> bool:
    with StopSignal() as stop:
        run = Trainer(cell.config, cell.directory, 1, [*callbacks_for(cell.config, reader_for), *extra])
        run.resume()
        return train(run, stop)


def complete(cell: Cell) -> bool:
    with StopSignal() as stop:
        return train_cell(cell.directory, stop, reader_for)


def fingerprints(cell: Cell) -> dict[str, str]:
    """sha256 of every tensor file and of every reading that the uninterrupted run also has."""
    files = [
        *cell.directory.glob("checkpoints/step_*/*.safetensors"),
        *cell.directory.glob("forensics/*.json"),
    ]
    names = {p.relative_to(cell.directory).as_posix(): p for p in files}
    return {name: _digest(p, cell) for name, p in names.items() if ".corrupt-" not in name and ".replaced-" not in name}


def _digest(path: Path, cell: Cell) -> str:
    content = path.read_bytes().replace(str(cell.directory).encode(), b"")  # readings name their source
    if path.suffix == ".json":  # and are filed under a checkpoint that tells how long training took
        content = json.dumps({k: v for k, v in json.loads(content).items() if k != "key"}).encode()
    return hashlib.sha256(content).hexdigest()


def rows(cell: Cell) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in r.items() if k not in TIMINGS} for r in metrics_log.read(cell.directory / "metrics.jsonl")
    ]
