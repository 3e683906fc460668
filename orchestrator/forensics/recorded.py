"""The reading of a checkpoint: the one that its cell made, where only that still can be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import DEFINITIONS, Key, Reading, read_reading
from orchestrator.storage import checkpoint, steps


def reading_of(path: Path) -> Reading:
    """The reading of the checkpoint at `path`: the cell's own of a reduced one, else a new one. Raises `UserError`."""
    return recorded(path) or analyze(path)


def origin(path: Path, reading: Reading) -> dict[str, Any]:
    """The keys of a result's JSON that say which model it is of."""
    return {
        "definitions": reading.definitions,
        "source": str(path),
        "family": reading.family,
        "step": reading.step,
    }


def recorded(path: Path) -> Reading | None:
    """The reading that a cell made of a checkpoint that has been reduced to its weights since; else None.

    Only that has the measures of the optimizer's state. None too where it is gone or of other definitions.
    """
    try:
        if not checkpoint.is_reduced(path):
            return None
        found = read_reading(steps.reading_of(path.resolve().parents[1], checkpoint.step_of(path)))
        return found if found.key == Key(checkpoint.key(path), DEFINITIONS) else None
    except (OSError, ValueError, UserError, IndexError):  # not one of ours, or without a reading
        return None
