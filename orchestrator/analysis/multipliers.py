"""Read the multipliers that sidecars applied, and find the units on which an arm's seeds agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.analysis.cells import CellResult
from sidecar.units import layer_in

THIRDS = ("early", "middle", "late")  # of the run

OUTSIDE = {"embed_tokens": "embedding", "lm_head": "head"}  # as formulas name them


@dataclass(frozen=True)
class Multipliers:
    """The decisions of one channel of one cell. The last is left out, since no step followed it."""

    steps: list[int]  # [D], at which each decision took effect
    units: list[str]  # [U]
    layers: list[int | None]  # [U]; None: outside the layers
    kinds: list[str]  # [U], short: q, down, layer, embedding
    logs: np.ndarray  # [D, U], ln of the multipliers

    @property
    def means(self) -> np.ndarray:
        """ln of every unit's geometric mean over the run, [U]."""
        return self.logs.mean(axis=0)


def multipliers_of(cell: CellResult) -> dict[str, Multipliers]:
    """Return channel → its multipliers; empty for a cell without a sidecar."""
    last = cell.metrics[-1]["step"] if cell.metrics else 0
    decisions = [r["sidecar"] for r in cell.metrics if "sidecar" in r and r["step"] < last]
    found = {}
    for channel, values in decisions[0]["values"].items() if decisions else ():
        named = [_layer_and_kind(unit) for unit in values]
        found[channel] = Multipliers(
            steps=[decision["step"] for decision in decisions],
            units=list(values),
            layers=[layer for layer, _ in named],
            kinds=[kind for _, kind in named],
            logs=np.log([[d["values"][channel][unit] for unit in values] for d in decisions]),
        )
    return found


def sidecar_rows(cell: CellResult) -> list[dict[str, Any]]:
    """Return a row per channel and unit: geometric mean multipliers over the run and over its thirds."""
    rows = []
    for channel, m in multipliers_of(cell).items():
        thirds = [m.logs[part] for part in np.array_split(np.arange(len(m.steps)), len(THIRDS))]
        for i, unit in enumerate(m.units):
            means = {
                name: float(np.exp(part[:, i].mean())) if len(part) else None
                for name, part in zip(THIRDS, thirds, strict=True)
            }
            rows.append(
                {"arm": cell.arm, "seed": cell.seed, "channel": channel, "layer": m.layers[i], "kind": m.kinds[i],
                 "unit": unit, "mean": float(np.exp(m.means[i])), **means}
            )  # fmt: skip
    return rows


@dataclass(frozen=True)
class Agreement:
    """One channel of an arm over its seeds."""

    units: list[str]
    layers: list[int | None]
    kinds: list[str]
    mean: np.ndarray  # [U], geometric mean multiplier over run and seeds
    sign: np.ndarray  # [U], +1 or −1 where it is above or below its cell's own mean in every seed, else 0
    seeds: int

    @property
    def agreeing(self) -> int:
        """Number of units above their cell's mean in every seed, or below it in every seed."""
        return int(np.count_nonzero(self.sign))

    @property
    def by_chance(self) -> float:
        """Expected number of agreeing units if every seed and unit tossed a fair coin."""
        return len(self.units) * 2.0 ** (1 - self.seeds)


def agreement(cells: list[CellResult]) -> dict[str, Agreement]:
    """Return channel → the agreement of the seeds, over the cells with the same units as the first.

    A unit is judged against the mean log-multiplier of its own cell: otherwise the seeds of a policy that raises
    everything would agree on all units.
    """
    stacks: dict[str, list[Multipliers]] = {}
    for cell in cells:
        for channel, m in multipliers_of(cell).items():
            if channel not in stacks or stacks[channel][0].units == m.units:
                stacks.setdefault(channel, []).append(m)
    found = {}
    for channel, stack in stacks.items():
        means = np.array([m.means for m in stack])  # [S, U]
        signs = np.sign(np.round(means - means.mean(axis=1, keepdims=True), 12))
        first = stack[0]
        same = np.where((signs == signs[0]).all(axis=0), signs[0], 0.0)
        found[channel] = Agreement(first.units, first.layers, first.kinds, np.exp(means.mean(axis=0)), same, len(stack))
    return found


def in_order(layers: Iterable[int | None]) -> list[int | None]:
    """Each layer once, ascending; last, what lies outside the layers."""
    return sorted(set(layers), key=lambda layer: (layer is None, layer))


def _layer_and_kind(unit: str) -> tuple[int | None, str]:
    place = layer_in(f"{unit}.")
    name = (place[2].rstrip(".") if place else unit).removesuffix(".weight")
    last = name.rpartition(".")[2].removesuffix("_proj") or "layer"
    return (place[1], last) if place else (None, OUTSIDE.get(last, last))
