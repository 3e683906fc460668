"""Between two records training never waits for the device: on `meta`, whatever would read a value raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.adam import adam

from orchestrator.training import optimizer
from orchestrator.training import trainer as module
from orchestrator.training.callbacks import (
    DecideMultipliers,
    EvaluateHeldout,
    SaveCheckpoint,
    TraceMomentum,
    WriteMetrics,
)
from orchestrator.training.compute import Compute
from orchestrator.training.trainer import Trainer
from tests.orchestrator.training.cells import new_cell

SELDOM = (
    "train.steps=1000", "train.log_every=500", "train.eval_every=500", "train.checkpoint_every=500",
    "forensics.every=500", "train.micro_batch_size=1", "width=ramp",
)  # fmt: skip
PRESSED = ("sidecar=all", "sidecar.mode=fixed")


def trainer_of(overrides: list[str], root: Path) -> Trainer:
    """A trainer with the callbacks of a cell."""
    cell = new_cell(overrides, root)
    callbacks = [DecideMultipliers(), TraceMomentum(), EvaluateHeldout(), WriteMetrics(), SaveCheckpoint()]
    trainer = Trainer(cell.config, cell.directory, 1, callbacks)
    for callback in callbacks:
        callback.start(trainer)
    return trainer


def take_steps(trainer: Trainer) -> None:
    """Three steps, after none of which a callback is due."""
    for _ in range(3):
        trainer.update()
        trainer.record = {}
        for callback in trainer.callbacks:
            callback.after_step(trainer)


@pytest.mark.parametrize("more", [(), PRESSED], ids=["plain", "sidecar"])
def test_a_step_reads_no_value(
    more: tuple[str, ...], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_kernel(*tensors: Any, **options: Any) -> None:
        *others, steps = tensors
        on_cpu = [torch.tensor(1.0) for _ in steps]  # where this form reads them; `meta` has no fused one
        adam(*others, on_cpu, **options | {"fused": False, "foreach": True})

    monkeypatch.setattr(optimizer, "adam", without_kernel)
    monkeypatch.setattr(module, "compute_of", lambda train, world: Compute(torch.device("meta"), False, False))
    trainer = trainer_of([*small, *SELDOM, *more], tmp_path)
    take_steps(trainer)
    with pytest.raises((RuntimeError, NotImplementedError)):  # the device would have told
        trainer.check_health()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("more", [(), PRESSED], ids=["plain", "sidecar"])
def test_a_step_waits_for_no_gpu(more: tuple[str, ...], small: list[str], tmp_path: Path) -> None:
    trainer = trainer_of([*small, *SELDOM, *more], tmp_path)
    take_steps(trainer)  # kernels and their libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_steps(trainer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
