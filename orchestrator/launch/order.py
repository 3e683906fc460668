"""In which order cells may run: one that plays back another's decisions comes after it."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.experiments.dependency import needed_cell
from orchestrator.experiments.experiment import Cell


def is_ready(cell: Cell, unfinished: Collection[Cell]) -> bool:
    """Whether the cell plays back none of the `unfinished` cells' decisions."""
    source = needed_cell(cell.config, cell.directory.parents[1])
    return source not in {other.directory for other in unfinished}


def first_ready(waiting: list[Cell], unfinished: Collection[Cell]) -> int | None:
    """The place of the first cell in `waiting` that is ready; null where there is none."""
    return next((place for place, cell in enumerate(waiting) if is_ready(cell, unfinished)), None)


def waves(cells: list[Cell]) -> list[list[Cell]]:
    """The cells in groups, each of which may begin when the groups before it have ended."""
    groups, left = [], list(cells)
    while left:
        ready = [cell for cell in left if is_ready(cell, left)] or left  # played in a circle: each will say so
        groups.append(ready)
        left = [cell for cell in left if cell not in ready]
    return groups
