"""Trainers for benchmarks: the product's own step, without its loop, on a device of one's choice."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor

from orchestrator.config.compose import CONF, compose
from orchestrator.config.schema import Config
from orchestrator.experiments.experiment import experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.training.trainer import Callback, Trainer

ROUNDS = 3  # of timed steps, of which the median counts


def cell_of(overrides: Sequence[str], root: Path) -> tuple[Config, Path]:
    """The configuration of the only cell of `overrides`, and its directory under `root`."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = experiment_of([*overrides, f"root={root}", f"data.cache_dir={root}/data", "tracker=off"], compose)
    open_directory(experiment)
    (cell,) = experiment.cells
    return cell.config, cell.directory


def trainer_of(overrides: Sequence[str], root: Path, callbacks: Sequence[Callback] = ()) -> Trainer:
    """The trainer of that cell. Its `callbacks` act when `steps_of` calls them."""
    config, directory = cell_of(overrides, root)
    return Trainer(config, directory, 1, callbacks)


def steps_of(trainer: Trainer, count: int) -> None:
    """Take `count` steps, each followed by the trainer's callbacks, and wait for the device."""
    for _ in range(count):
        trainer.update()
        trainer.record = {}
        for callback in trainer.callbacks:
            callback.after_step(trainer)
    wait(trainer.compute.device)


def wait(device: torch.device) -> None:
    """Wait until `device` has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object]) -> float:
    """The median wall time of `work` over `ROUNDS` calls; it must wait for the device itself."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def standing(trainer: Trainer) -> list[Tensor]:
    """The tensors that live from step to step: weights and moments."""
    return [*trainer.model.parameters(), *trainer.optimizer.tensors().values()]
