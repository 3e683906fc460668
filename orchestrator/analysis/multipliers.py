"""What the sidecars of an arm did: one multiplier per unit and decision, and where the seeds agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.analysis.cells import CellResult
from sidecar.units import place_of

THIRDS = ("early", "middle", "late")  # of the run


@dataclass(frozen=True)
class Held:
    """One channel of one cell, decision by decision; the last one, which no step followed, is left out."""

    steps: list[int]  # [D], at which each proposal was put in force
    units: list[str]  # [U]
    layers: list[int]  # [U]
    kinds: list[str]  # [U], short: q, down, layer
    logs: np.ndarray  # [D, U], ln of the multipliers

    @property
    def means(self) -> np.ndarray:
        """[U], ln of every unit's geometric mean over the run."""
        return self.logs.mean(axis=0)


def held(cell: CellResult) -> dict[str, Held]:
    """Channel → what was held; empty for a cell without a sidecar."""
    last = cell.metrics[-1]["step"] if cell.metrics else 0
    decisions = [r["sidecar"] for r in cell.metrics if "sidecar" in r and r["step"] < last]
    found = {}
    for channel, values in decisions[0]["values"].items() if decisions else ():
        places = [_place(unit) for unit in values]
        found[channel] = Held(
            steps=[decision["step"] for decision in decisions],
            units=list(values),
            layers=[layer for layer, _ in places],
            kinds=[kind for _, kind in places],
            logs=np.log([[d["values"][channel][unit] for unit in values] for d in decisions]),
        )
    return found


def sidecar_rows(cell: CellResult) -> list[dict[str, Any]]:
    """One row per channel and unit: geometric mean multipliers over the run and over its thirds."""
    rows = []
    for channel, h in held(cell).items():
        thirds = [h.logs[part] for part in np.array_split(np.arange(len(h.steps)), len(THIRDS))]
        for i, unit in enumerate(h.units):
            means = {name: _geometric(part[:, i]) for name, part in zip(THIRDS, thirds, strict=True)}
            rows.append(
                {"arm": cell.arm, "seed": cell.seed, "channel": channel, "layer": h.layers[i], "kind": h.kinds[i],
                 "unit": unit, "mean": float(np.exp(h.means[i])), **means}
            )  # fmt: skip
    return rows


@dataclass(frozen=True)
class Agreement:
    """One channel of an arm over its seeds."""

    units: list[str]
    layers: list[int]
    kinds: list[str]
    mean: np.ndarray  # [U], geometric mean multiplier over run and seeds
    sign: np.ndarray  # [U], +1 or −1 where it is above or below its cell's own mean in every seed, else 0
    seeds: int

    @property
    def agreeing(self) -> int:
        """Units that got more than their cell's mean in every seed, or less in every seed."""
        return int(np.count_nonzero(self.sign))

    @property
    def by_chance(self) -> float:
        """How many would agree if every seed and unit tossed a coin; units with common evidence toss fewer."""
        return len(self.units) * 2.0 ** (1 - self.seeds)


def agreement(cells: list[CellResult]) -> dict[str, Agreement]:
    """Channel → where the seeds agree, over the cells that hold the same units.

    A unit is judged against the mean log-multiplier of its own cell: a policy that raises or lowers everything
    would else agree with itself everywhere.
    """
    stacks: dict[str, list[Held]] = {}
    for cell in cells:
        for channel, h in held(cell).items():
            if channel not in stacks or stacks[channel][0].units == h.units:
                stacks.setdefault(channel, []).append(h)
    found = {}
    for channel, stack in stacks.items():
        means = np.array([h.means for h in stack])  # [S, U]
        signs = np.sign(np.round(means - means.mean(axis=1, keepdims=True), 12))
        first = stack[0]
        same = np.where((signs == signs[0]).all(axis=0), signs[0], 0.0)
        found[channel] = Agreement(first.units, first.layers, first.kinds, np.exp(means.mean(axis=0)), same, len(stack))
    return found


def _place(unit: str) -> tuple[int, str]:
    place = place_of(f"{unit}.")
    if place is None:
        return 0, unit
    name = place[2].rstrip(".").removesuffix(".weight")
    return place[1], name.rpartition(".")[2].removesuffix("_proj") or "layer"


def _geometric(logs: np.ndarray) -> float | None:
    return float(np.exp(logs.mean())) if logs.size else None
