"""Measured damage: what a result of `intervene` says of one edit, and predicts of several layers left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SCHEMA = 2  # of a result
SUM = "sum of single deletions"
WHOLE = "damage of the block"
Cost = dict[str, dict[str, float | None]]  # domain → mean, low and high of a damage


class Measured:
    """One edit's damage: `mean`, `low`, `high` and `breadth`, each [layers, domains], NaN where it was not measured."""

    def __init__(self, result: Mapping[str, Any], edit: str) -> None:
        self.domains = list(result["documents"])
        of_layers = [layer["damage"].get(edit) for layer in result["layers"]]
        self.mean, self.low, self.high, self.breadth = (
            np.array([[_value(of, domain, name) for domain in self.domains] for of in of_layers])
            for name in ("mean", "low", "high", "breadth")
        )

    @property
    def cost(self) -> np.ndarray:
        """The mean over domains [layers]."""
        return self.mean.mean(1)

    @property
    def typical(self) -> np.ndarray:
        """The median over layers in each domain [domains]; 0 where it is negative."""
        return np.fmax(np.nanmedian(self.mean, axis=0), 0)

    def total(self, layers: Sequence[int]) -> Cost:
        """The sum over `layers` in each domain, with the sums of the ends."""
        sums = {name: getattr(self, name)[list(layers)].sum(0) for name in ("mean", "low", "high")}
        return {
            domain: {name: known(of[place]) for name, of in sums.items()} for place, domain in enumerate(self.domains)
        }


def measured_edits(result: Mapping[str, Any]) -> list[str]:
    """The edits that were made on any layer."""
    return [edit for edit in result["edits"] if any(layer["damage"].get(edit) for layer in result["layers"])]


def predicted(result: Mapping[str, Any], layers: Sequence[int]) -> tuple[Cost, str] | None:
    """The damage that dropping `layers`, in order, is predicted to do, and by what; None where that was not measured.

    Consecutive layers that were deleted as one block have its damage; any others the sum of their own.
    """
    edits, block = measured_edits(result), f"delete_{len(layers)}"
    if block in edits and layers[-1] - layers[0] == len(layers) - 1:
        return Measured(result, block).total(layers[:1]), WHOLE
    return (Measured(result, "delete").total(layers), SUM) if "delete" in edits else None


def known(value: float) -> float | None:
    """The value; None where it is not finite."""
    return float(value) if np.isfinite(value) else None


def _value(of_edit: Mapping[str, Any] | None, domain: str, name: str) -> float:
    value = None if of_edit is None else of_edit[domain].get(name)
    return np.nan if value is None else float(value)
