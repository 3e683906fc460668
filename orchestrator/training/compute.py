"""The device and the precision of a model's computations."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Device, Precision, TrainConfig
from orchestrator.training.distributed import World


@dataclass(frozen=True)
class Compute:
    """A rank's device, and the precision of matrix products there; parameters are fp32 either way."""

    device: torch.device
    bf16: bool  # else fp32
    compiled: bool  # the model's layers are compiled

    @property
    def precision(self) -> str:
        """`bf16` or `fp32`."""
        return "bf16" if self.bf16 else "fp32"

    def check_precision(self, saved: str | None, path: Path) -> None:
        """Raise `UserError` where the checkpoint at `path` was trained in another precision; None: not recorded."""
        if saved is not None and saved != self.precision:
            raise UserError(
                f"{path} was trained in {saved}, and here train.precision=auto is {self.precision}: go on with "
                "the train.device that it was trained on, or train anew under another name=...."
            )

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def compiling_nothing(self) -> AbstractContextManager[Any]:
        """The context of a pass that is not worth compiling: only the graphs that training compiled are used."""
        return torch.compiler.set_stance("eager_on_recompile") if self.compiled else nullcontext()

    def to_device(self, rows: Tensor) -> Tensor:
        """`rows`, copied to the device without waiting for it."""
        if self.device.type == "cuda":
            rows = rows.pin_memory()  # else the copy waits
        return rows.to(self.device, non_blocking=True)


def compute_of(train: TrainConfig, world: World) -> Compute:
    """The device and precision of this rank. Raises `UserError` for train.device=cuda without a GPU."""
    cuda = torch.cuda.is_available()
    if train.device == Device.cuda and not cuda:
        raise UserError("train.device=cuda needs a GPU, and torch sees none here: use train.device=auto.")
    kind = ("cuda" if cuda else "cpu") if train.device == Device.auto else train.device.value
    device = world.device(torch.device(kind))
    bf16 = train.precision == Precision.bf16 or (train.precision == Precision.auto and kind == "cuda")
    return Compute(device, bf16, train.compile)
