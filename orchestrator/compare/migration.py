"""Which roles moved: from reading to reading within a cell, and between the cells of a pair (SCIENCE §4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from orchestrator.body import roles_of
from orchestrator.compare.cells import CellResult
from orchestrator.compare.palette import ROLES

STATES = (*ROLES, "tie")


def role_migration(cell: CellResult) -> list[dict[str, Any]]:
    """One row per layer and interval between successive readings."""
    return [
        {
            "arm": cell.arm, "seed": cell.seed, "step_from": before["step"], "step": after["step"],
            "layer": new["layer"], "role_from": old["role"], "role_to": new["role"],
            "margin_from": old["margin"], "margin_to": new["margin"],
            "changed": state(old["role"]) != state(new["role"]),  # from one tie to another is no change
        }
        for before, after in pairwise(cell.readings.values())
        for old, new in zip(before["layers"], after["layers"], strict=True)
    ]  # fmt: skip


def transition_counts(moves: Iterable[tuple[str, str]]) -> np.ndarray:
    """How often each role became each other one: [5, 5] in the order of `STATES`, rows = before."""
    counted = Counter((state(before), state(after)) for before, after in moves)
    return np.array([[counted[before, after] for after in STATES] for before in STATES])


def state(role: str) -> str:
    """The role, or `tie` for two leaders."""
    return role if role in ROLES else "tie"


def same_roles(a: dict[str, Any], b: dict[str, Any]) -> tuple[int, int]:
    """Layers with the same single role in both readings, and layers compared; (0, 0) for unequal depths."""
    left, right = roles_of(a), roles_of(b)
    if len(left) != len(right):
        return 0, 0
    return sum(x == y and x in ROLES for x, y in zip(left, right, strict=True)), len(left)
