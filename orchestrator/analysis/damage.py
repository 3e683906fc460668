"""Compare what interventions on the layers of two arms cost, layer by layer (SCIENCE §9)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.statistics import holm, interval, sign_flip_p

EDIT = "delete"  # the edit of the figure and the verdicts


@dataclass(frozen=True)
class LayerDamage:
    """The damage of deleting one layer, nats/token, the mean over domains: means over the pairs; delta = b − a."""

    layer: int
    a: float
    b: float
    delta: float
    low: float | None  # 95 % interval of delta
    high: float | None
    p: float | None  # two-sided sign-flip, corrected by Holm for the number of layers


@dataclass(frozen=True)
class DamageShift:
    """Two arms' damage at the newest step at which interventions were made in both cells of any pair."""

    arm: str
    step: int
    n: int
    layers: list[LayerDamage]


def damage_rows(cell: CellResult) -> list[dict[str, Any]]:
    """Return a row per step, layer, edit and domain of a cell; nothing where no intervention was made."""
    return [
        {"arm": cell.arm, "seed": cell.seed, "step": step, "layer": layer["layer"], "role": layer["role"]}
        | {"edit": edit, "domain": domain, "rise": of["mean"], "low": of["low"], "high": of["high"], "kl": of["kl"]}
        for step, document in cell.damages.items()
        for layer in document["layers"]
        for edit, of_edit in layer["damage"].items()
        for domain, of in (of_edit or {}).items()
    ]


def profile_of(document: dict[str, Any], edit: str = EDIT) -> np.ndarray | None:
    """Return each layer's damage by `edit`, the mean over domains [L]; None where it was not made."""
    found = [layer["damage"].get(edit) for layer in document["layers"]]
    if not all(found):
        return None
    return np.array([np.mean([of["mean"] for of in of_edit.values()]) for of_edit in found])


def damage_shift(arm: str, pairs: Iterable[Pair]) -> DamageShift | None:
    """Compare the pairs of `arm`; None where no pair has interventions at one step, or depths differ."""
    own = [pair for pair in pairs if pair.arm == arm]
    step = max((step for pair in own for step in pair.a.damages.keys() & pair.b.damages.keys()), default=None)
    if step is None:
        return None
    both = [tuple(profile_of(cell.damages[step]) for cell in pair.cells) for pair in own if _has(pair, step)]
    known = [(a, b) for a, b in both if a is not None and b is not None and len(a) == len(b)]
    if not known or len({len(a) for a, _ in known}) > 1:
        return None
    x = np.array(known)  # [pairs, arms, L]
    delta = x[:, 1] - x[:, 0]
    raw = [sign_flip_p(column) for column in delta.T]
    p = holm([value for value in raw if value is not None]) if None not in raw else raw
    ends = [interval(column, 0.95) for column in delta.T]
    means = x.mean(0)
    return DamageShift(
        arm, step, len(known),
        [
            LayerDamage(i, means[0, i].item(), means[1, i].item(), delta[:, i].mean().item(), end.low, end.high, p[i])
            for i, end in enumerate(ends)
        ],
    )  # fmt: skip


def _has(pair: Pair, step: int) -> bool:
    return all(step in cell.damages for cell in pair.cells)
