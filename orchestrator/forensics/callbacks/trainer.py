"""A callback of `transformers.Trainer` that reads the model's layers while it trains."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orchestrator.forensics.callbacks.loggers import Log, Writer, to_wandb, to_writer
from orchestrator.forensics.callbacks.readings import Readings, check


class ForensicsCallback(TrainerCallback):
    """Reads the model every `every` optimizer steps, from step 0, and after the last one (see `Readings`).

    It logs to `forensics.jsonl` in `directory`, to the active W&B run, and to TensorBoard where `report_to` names it:
    to `writer`, or as the run `forensics` beside the trainer's own. The first process of several reads.
    """

    def __init__(
        self,
        every: int = 500,
        directory: str | Path | None = None,
        *,
        scoring: str = "calibrated",
        when_busy: str = "skip",
        submodule: str = "",
        writer: Writer | None = None,
    ) -> None:
        """`directory`: by default `forensics` in the trainer's output directory. `writer`: a `SummaryWriter`.

        `submodule`: the name of the model within the one that is trained, where that holds several, such as `student`.
        Raises `UserError` for an option that cannot work.
        """
        check(every, scoring, when_busy)
        self.every, self.directory, self.writer = every, directory, writer
        self.scoring, self.when_busy, self.submodule = scoring, when_busy, submodule
        self._readings: Readings | None = None  # only while the first process trains
        self._own: Any = None  # a `SummaryWriter` that this callback opened

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        directory = Path(self.directory or Path(str(args.output_dir)) / "forensics")
        loggers: list[Log] = [to_wandb]
        if self.writer is None and "tensorboard" in (args.report_to or ()):
            self._own = _writer(Path(str(args.output_dir)))
        if writer := self.writer or self._own:
            loggers.append(to_writer(writer))
        self._readings = Readings(self.every, directory, loggers, self.scoring, self.when_busy, self.submodule)
        self._readings.after_step(state.global_step, _model(kwargs))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._readings is not None:
            self._readings.after_step(state.global_step, _model(kwargs))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._readings is not None:
            self._readings.finish(state.global_step, _model(kwargs))
            self._readings.close()
            self._readings = None
        if self._own is not None:
            self._own.close()
            self._own = None


def _model(kwargs: dict[str, Any]) -> nn.Module:
    model: nn.Module = kwargs["model"]
    return model


def _writer(directory: Path) -> Any:
    """A `SummaryWriter` of the run `forensics`, beside the trainer's own in its output directory."""
    try:
        module = import_module("torch.utils.tensorboard")
    except ImportError:
        module = import_module("tensorboardX")
    runs = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or directory / "runs").expanduser()
    return module.SummaryWriter(str(runs / "forensics"))
