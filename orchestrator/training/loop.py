"""The training loop of one cell; its periodic work is done by callbacks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

import torch

from orchestrator.common.signals import stops
from orchestrator.config import load
from orchestrator.config.schema import Precision
from orchestrator.storage import checkpoint
from orchestrator.storage.cell_files import Writing, unfenced
from orchestrator.storage.lease import Superseded
from orchestrator.training.callbacks import NewReader, callbacks_for
from orchestrator.training.distributed import SINGLE_PROCESS, World
from orchestrator.training.trainer import Trainer

POLL_SECONDS = 0.05


class StopSignal(AbstractContextManager["StopSignal"]):
    """Notes the signals of `stops` while it is entered; the loop stops at its next step boundary.

    The loop calls `on_saved` once the stopped run has saved its checkpoint.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.on_saved: Callable[[], None] = lambda: None

    def ignore_signals(self) -> None:
        """Ignore further signals, in this process, which is about to end, and in those that it starts."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def __enter__(self) -> StopSignal:
        self._previous = {s: signal.signal(s, self._note) for s in stops()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name  # later signals follow from the first


def train_cell(
    cell_dir: Path,
    stop: StopSignal,
    new_reader: NewReader,
    attempt: int = 1,
    on_start: Callable[[Trainer, list[str]], None] = lambda trainer, warnings: None,
    writing: Writing = unfenced,
    world: World = SINGLE_PROCESS,
) -> bool:
    """Train or resume the cell in `cell_dir` as its `config.yaml` says; True when it reached its last step.

    `new_reader` makes the reader of the cell's checkpoints. `on_start` is called before the first step, with a warning
    for each corrupt checkpoint. `writing` encloses every write, and raises where another attempt has the cell.
    """
    config = load.from_file(cell_dir / "config.yaml")
    # torch creates this directory when it loads its compiler, used or not, by default under /tmp
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(config.data.cache_dir, ".inductor").resolve()))
    torch.set_num_threads(config.train.threads)
    fp32 = config.train.precision == Precision.fp32
    torch.set_float32_matmul_precision("highest" if fp32 else "high")  # high: TF32 for what autocast leaves in fp32
    with world.failing_together():
        trainer = Trainer(config, cell_dir, attempt, callbacks_for(config, new_reader, world), writing, world)
        warnings = trainer.resume()
        on_start(trainer, warnings)
        return train(trainer, stop)


def train(trainer: Trainer, stop: StopSignal) -> bool:
    """Train to the last step; False if a signal stopped it at an earlier step, whose checkpoint is then saved."""
    try:
        with trainer.world.failing_together():
            _loop(trainer, stop)
    except Superseded:  # the attempt that has the cell reports on it
        raise
    except Exception as error:
        for callback in trainer.callbacks:
            callback.fail(trainer, str(error))
        raise
    for callback in trainer.callbacks:
        callback.finish(trainer)
    return trainer.step == trainer.last_step


def _loop(trainer: Trainer, stop: StopSignal) -> None:
    fresh = trainer.world.on_rank_0(lambda: not checkpoint.saved(trainer.files.checkpoints))
    for callback in trainer.callbacks:
        callback.start(trainer)
    trainer.world.on_rank_0(trainer.prune)  # before a save: this launch may keep fewer, to free a full disk
    if fresh:
        _after_step(trainer)
    while trainer.step < trainer.last_step and not _stopped(trainer, stop):
        trainer.update()
        _after_step(trainer)
    while stop.received is None and any(callback.is_busy(trainer) for callback in trainer.callbacks):
        time.sleep(POLL_SECONDS)
    if stop.received is not None:
        stop.ignore_signals()
        trainer.save()
        stop.on_saved()


def _stopped(trainer: Trainer, stop: StopSignal) -> bool:
    """True on all ranks once one received a signal: signals reach ranks one by one, and all must stop at one step."""
    agreed = trainer.world.any_rank(stop.received is not None)
    if agreed and stop.received is None:
        stop.received = "a signal to another rank"
    return agreed  # a signal that arrives meanwhile counts at the next step


def _after_step(trainer: Trainer) -> None:
    trainer.record = {}
    for callback in trainer.callbacks:
        callback.after_step(trainer)
