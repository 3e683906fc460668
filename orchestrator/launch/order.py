"""The order of cells: a cell that needs another's result comes after it."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.experiments.dependency import needed_cell
from orchestrator.experiments.experiment import Cell


def is_ready(cell: Cell, unfinished: Collection[Cell]) -> bool:
    """True where the cell needs none of the `unfinished` cells."""
    return needed_cell(cell.config, cell.directory.parents[1]) not in {other.directory for other in unfinished}


def waves(cells: list[Cell]) -> list[list[Cell]]:
    """The cells in groups, each of which may begin when those before it have ended."""
    groups, left = [], list(cells)
    while left:
        ready = [cell for cell in left if is_ready(cell, left)] or left  # in a circle: each fails, and says why
        groups.append(ready)
        left = [cell for cell in left if cell not in ready]
    return groups
