"""Loggers of numbers by name at a step: W&B, TensorBoard, and JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

AXIS = "forensics/step"  # W&B's axis of the readings

Row = Mapping[str, float]
Log = Callable[[Row, int], None]  # numbers by name, and their step


class Writer(Protocol):
    """TensorBoard's `SummaryWriter`, of torch or tensorboardX."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...

    def flush(self) -> Any: ...


def to_wandb(row: Row, step: int) -> None:
    """Log to the active run of W&B, on an axis of their own; nothing without one."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is not None:
        run.define_metric(AXIS)
        run.define_metric("forensics/*", step_metric=AXIS)
        run.log({AXIS: step, **row})


def to_writer(writer: Writer) -> Log:
    """Logs to a `SummaryWriter`."""

    def log(row: Row, step: int) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line of JSON to a file, which is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
