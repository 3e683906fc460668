"""A callback of Lightning's trainer that reads the model's layers while it trains.

It can be imported where `lightning` or `pytorch_lightning` is installed; neither is a dependency.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.forensics.callbacks.loggers import Log, to_wandb
from orchestrator.forensics.callbacks.readings import Readings, check

Callback: Any = import_module("lightning.pytorch" if find_spec("lightning") else "pytorch_lightning").Callback


class ForensicsCallback(Callback):
    """Reads the model every `every` optimizer steps, from step 0, and after the last one (see `Readings`).

    The model is the one that the `LightningModule` holds, where it is of transformers or ours. It logs to
    `forensics.jsonl` in `directory`, to each of the trainer's loggers, and to the active W&B run where none of them is
    W&B's. The first process of several reads.
    """

    def __init__(
        self,
        every: int = 500,
        directory: str | Path | None = None,
        *,
        scoring: str = "calibrated",
        when_busy: str = "skip",
        submodule: str = "",
    ) -> None:
        """`directory`: by default `forensics` in the trainer's log directory.

        `submodule`: the name of the model within the one that is trained, where that holds several, such as `student`.
        Raises `UserError` for an option that cannot work.
        """
        super().__init__()
        check(every, scoring, when_busy)
        self.every, self.directory, self.scoring = every, directory, scoring
        self.when_busy, self.submodule = when_busy, submodule
        self._readings: Readings | None = None  # only while the first process trains

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        logged = trainer.log_dir or trainer.default_root_dir  # every process asks: its answer is broadcast
        if trainer.is_global_zero:
            directory = Path(self.directory or Path(logged) / "forensics")
            self._readings = Readings(
                self.every, directory, _loggers(trainer), self.scoring, self.when_busy, self.submodule
            )
            self._readings.after_step(trainer.global_step, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *unused: Any) -> None:
        if self._readings is not None:
            self._readings.after_step(trainer.global_step, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._readings is not None:
            self._readings.finish(trainer.global_step, pl_module)
            self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._readings is not None:
            self._readings.close()
            self._readings = None


def _loggers(trainer: Any) -> list[Log]:
    """The trainer's loggers, and the active W&B run where none of them is W&B's."""
    names = [type(logger).__name__ for logger in trainer.loggers]
    logs = [_to_logger(logger) for logger in trainer.loggers]
    return logs if "WandbLogger" in names else [*logs, to_wandb]


def _to_logger(logger: Any) -> Log:
    """Logs to a logger of Lightning's."""
    return lambda row, step: logger.log_metrics(dict(row), step)
