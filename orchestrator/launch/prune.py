"""Freeing the disk of an experiment's finished cells: their older checkpoints, and the states to resume from."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted, size
from orchestrator.experiments.dependency import trunk_cell
from orchestrator.experiments.run_directory import reopen
from orchestrator.jobs.worker import is_finished
from orchestrator.storage import checkpoint, lease


def prune(path: Path, keep: int, console: Console) -> None:
    """Keep the weights of the `keep` newest whole checkpoints of each finished cell, and print what that freed.

    Everything else in their `checkpoints/` is deleted, but for states that unfinished branches begin from; a cell
    that is not finished stays as it is, also while others run. Raises `UserError` where the disk refuses.
    """
    experiment, freed = reopen(path), 0
    left = [cell for cell in experiment.cells if lease.is_held(cell.directory) or not is_finished(cell.directory)]
    pruned = [cell for cell in experiment.cells if cell not in left]
    needed = {
        checkpoint.path_of(trunk / "checkpoints", cell.config.branch.step or 0)
        for cell in left
        if (trunk := trunk_cell(cell.config, experiment.directory)) is not None
    }
    for cell in pruned:
        checkpoints = cell.directory / "checkpoints"
        before = _bytes(checkpoints)
        _prune(checkpoints, keep, needed)
        freed += before - _bytes(checkpoints)
    kept = f"the weights of {counted(keep, 'checkpoint')} each" if keep else "no checkpoint"
    console.print(
        f"Freed {size(freed)} of {counted(len(pruned), 'finished cell')}, which keep {kept}.", highlight=False
    )
    if left:
        text = f"Left alone, as they are not finished: {', '.join(cell.id for cell in left)}."
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _prune(directory: Path, keep: int, needed: Collection[Path]) -> None:
    whole = (path for path in reversed(checkpoint.saved(directory)) if checkpoint.corruption(path) is None)
    kept = {path for path, _ in zip(whole, range(keep), strict=False)}
    try:
        for path in directory.glob("*"):
            if path in needed:
                continue
            if path in kept:
                checkpoint.reduce(path)
            elif path.is_dir():
                shutil.rmtree(path)
    except OSError as error:
        raise UserError(f"{directory} cannot be pruned ({error}): make it writable; the rest is untouched.") from error


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
