"""Compare what interventions on the layers of two arms cost, layer by layer (SCIENCE §9)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.flattening import layer_p
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.statistics import interval

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
    p: float | None  # exact two-sided sign-flip, corrected for the number of layers by step-down max-T


@dataclass(frozen=True)
class DamageShift:
    """Two arms' damage at the newest step at which interventions were made alike in both cells of any pair."""

    arm: str
    step: int
    seeds: list[int]  # that were intervened on there
    layers: list[LayerDamage]
    left_out: list[int]  # the others, some with other settings in one arm


def damage_rows(cell: CellResult) -> list[dict[str, Any]]:
    """Return a row per step, layer, edit and domain of a cell; nothing where no intervention was made."""
    return [
        {"arm": cell.arm, "seed": cell.seed, "step": step, "layer": layer["layer"], "role": layer["role"]}
        | {"edit": edit, "domain": domain, "rise": of["mean"]}
        | {name: of.get(name) for name in ("low", "high", "kl")}
        for step, document in cell.damages.items()
        for layer in document["layers"]
        for edit, of_edit in layer["damage"].items()
        for domain, of in (of_edit or {}).items()
    ]


def profile_of(document: dict[str, Any], edit: str = EDIT) -> np.ndarray | None:
    """Return each layer's damage by `edit`, the mean over domains [L]; None where it was not made."""
    found = [layer["damage"].get(edit) for layer in document["layers"]]
    means = [[of["mean"] for of in (of_edit or {}).values()] for of_edit in found]
    return np.array([np.mean(of) for of in means]) if all(of and None not in of for of in means) else None


def damage_shift(arm: str, pairs: Iterable[Pair]) -> DamageShift | None:
    """Compare the pairs of `arm`; None where no pair has interventions at one step, or depths differ."""
    own = [pair for pair in pairs if pair.arm == arm]
    known = {pair.seed: _of_pair(pair) for pair in own}
    step = max((step for of in known.values() for step in of), default=None)
    if step is None:
        return None
    at = {seed: of[step] for seed, of in known.items() if step in of}
    if len({len(profile) for both in at.values() for profile in both}) > 1:
        return None
    x = np.array(list(at.values()))  # [pairs, arms, L]
    delta = x[:, 1] - x[:, 0]
    p = layer_p(pd.DataFrame(delta.T))
    ends = [interval(column, 0.95) for column in delta.T]
    a, b = x.mean(0)
    layers = [
        LayerDamage(i, a[i].item(), b[i].item(), delta[:, i].mean().item(), end.low, end.high, p.get(i))
        for i, end in enumerate(ends)
    ]
    return DamageShift(arm, step, list(at), layers, [seed for seed in known if seed not in at])


def _of_pair(pair: Pair) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return step → both profiles, where both cells were intervened on on the same text."""
    found = {}
    for step in sorted(pair.a.damages.keys() & pair.b.damages.keys()):
        a, b = (cell.damages[step] for cell in pair.cells)
        profiles = profile_of(a), profile_of(b)
        same = all(a.get(key) == b.get(key) for key in ("documents", "text"))
        if same and profiles[0] is not None and profiles[1] is not None:
            found[step] = (profiles[0], profiles[1])
    return found
