"""The change of every tensor between two checkpoints, and the drift that a gradient of one direction would give
(SCIENCE §4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.weights.memory import trim
from orchestrator.forensics.weights.tensors import Tensors
from orchestrator.storage import metrics_log

ROWS = 2048  # of a matrix, in memory at once


@dataclass(frozen=True)
class Change:
    """The change of one tensor from checkpoint A to checkpoint B."""

    tensor: str
    relative: float | None  # ‖W_B − W_A‖/‖W_A‖; null where W_A is zero
    rms: float  # of the entries of W_B − W_A: their drift
    of_consistent: float | None = None  # drift over that of a gradient which never turns; null where it is not known


@dataclass(frozen=True)
class Changes:
    """The changes of all tensors that both checkpoints have, the largest relative change first."""

    consistent: float | None  # drift of an entry that moves by the learning rate at every step between A and B
    tensors: list[Change]
    left: list[str]  # tensors that cannot be compared: only one model has them, or their shapes or types differ, or NaN


def changes(a: CheckpointModel, b: CheckpointModel) -> Changes:
    """The changes from `a` to `b` of all tensors of one name and shape, and the names of the others."""
    consistent = consistent_drift(a, b)
    found, left = [], []
    for name in sorted(a.tensors.names | b.tensors.names):
        try:
            if not _is_shared(name, a.tensors, b.tensors):
                left.append(name)
                continue
            found.append(_change(name, a.tensors, b.tensors, consistent))
        except UserError:  # integers, or NaN
            left.append(name)
        a.tensors.release()
        b.tensors.release()
        trim()
    found.sort(key=lambda change: -math.inf if change.relative is None else -change.relative)
    return Changes(consistent, found, left)


def added(base: CheckpointModel, adapted: CheckpointModel) -> Changes:
    """The changes of the tensors that an adapter changes, of its base model and the sum; the largest first."""
    found = changes(base, adapted)
    return Changes(None, [of for of in found.tensors if of.rms], found.left)


def consistent_drift(a: CheckpointModel, b: CheckpointModel) -> float | None:
    """The sum of the learning rates of the steps between two checkpoints of one cell, by its metrics log.

    Adam moves an entry whose gradient never turns by the learning rate at each step. Rates between two records are
    interpolated. None for other checkpoints, and where the log does not cover the steps.
    """
    first, last = (model.description.step for model in (a, b))
    cells = {model.directory.resolve().parents[1] for model in (a, b) if len(model.directory.resolve().parents) > 1}
    if first is None or last is None or first >= last or len(cells) != 1:
        return None
    rates = {
        record["step"]: record["lr"]
        for record in metrics_log.read(cells.pop() / "metrics.jsonl")
        if isinstance(record.get("step"), int) and isinstance(record.get("lr"), int | float)
    }
    steps = sorted(rates)
    if not steps or steps[0] > first + 1 or steps[-1] < last:
        return None
    return float(np.interp(np.arange(first + 1, last + 1), steps, [rates[step] for step in steps]).sum())


def _is_shared(name: str, a: Tensors, b: Tensors) -> bool:
    if name not in a or name not in b:
        return False
    shape = a.shape(name)
    return shape == b.shape(name) and bool(shape) and math.prod(shape) > 0


def _change(name: str, a: Tensors, b: Tensors, consistent: float | None) -> Change:
    before = moved = 0.0
    for x, y in zip(_blocks(name, a), _blocks(name, b), strict=True):
        before += float(x.double().square().sum())
        moved += float((y.double() - x.double()).square().sum())
    rms = math.sqrt(moved / math.prod(a.shape(name)))
    return Change(name, math.sqrt(moved / before) if before else None, rms, rms / consistent if consistent else None)


def _blocks(name: str, tensors: Tensors) -> Iterator[Tensor]:
    return tensors.rows(name, ROWS) if len(tensors.shape(name)) > 1 else iter((tensors.read(name),))
