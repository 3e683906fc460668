"""Calibration: what edits need to know of a model, from its weights and from an intact pass over the text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.forensics.architecture.layer import Layer
from orchestrator.forensics.architecture.live import Live
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.statistics import co_magnitude, robust_threshold
from orchestrator.interventions.passes import Pass

SEED = 0  # of the random positions
RATIOS = ("growth", "relative_write", "block_influence")


@dataclass(frozen=True)
class Calibration:
    """Each layer's mean effect on the text, and its FFN positions: the numbers that edits use.

    Means over positions of: `writes`, x_{l+1} − x_l [D]; `growth`, ‖x_{l+1}‖/‖x_l‖ over the layer's own coordinates;
    `relative_write` and `block_influence`, ‖x_{l+1} − x_l‖/‖x_l‖ and 1 − cos(x_l, x_{l+1}). `positions`: named sets of
    FFN positions.
    """

    writes: list[Tensor]
    growth: list[float]
    relative_write: list[float]
    block_influence: list[float]
    positions: list[Mapping[str, np.ndarray]]


def calibrate(passes: Iterable[Pass], positions: list[Mapping[str, np.ndarray]]) -> Calibration:
    """The calibration by intact passes over the text, each position with the same weight; padding has none.

    Ratios leave out the positions whose stream is zero before the layer, such as an unused token's.
    """
    totals: list[dict[str, Any]] = [defaultdict(float) for _ in positions]
    for one in passes:
        for layer, (before, after) in enumerate(one.streams()):  # each [positions, D]
            for name, of in _sums(before.double(), after.double(), one.subject.width(layer)).items():
                totals[layer][name] += of
    return Calibration(
        writes=[(of["write"] / of["positions"]).float() for of in totals],
        **{name: [of[name] / of["nonzero"] for of in totals] for name in RATIOS},
        positions=positions,
    )


def _sums(before: Tensor, after: Tensor, width: int | None) -> dict[str, Any]:
    """Sums over positions, and how many there are with a stream to compare with."""
    width = width or before.shape[-1]
    some = before[:, :width].any(dim=-1)
    x, y = before[some], after[some]
    return {
        "write": (after - before).sum(0),
        "positions": len(before),
        "nonzero": len(x),
        "growth": float((y[:, :width].norm(dim=-1) / x[:, :width].norm(dim=-1)).sum()),
        "relative_write": float(((y - x).norm(dim=-1) / x.norm(dim=-1)).sum()),
        "block_influence": float((1 - F.cosine_similarity(x, y, dim=-1)).sum()),
    }


def ffn_positions(source: Path | Live) -> list[Mapping[str, np.ndarray]]:
    """Per layer, the saturated FFN positions and two sets as many of others; nothing for a layer without any.

    `saturated`: those of `saturated_robust` (SCIENCE §1). `random`: drawn from the others with a fixed seed. `as_loud`:
    for each, the loudest first, the one among the others whose write ‖down[:,p]‖ is nearest to its own.
    """
    return [_positions(layer) for layer in CheckpointModel(source)]


def ffn_parameters(source: Path | Live) -> list[int | None]:
    """Per layer, the number of entries of its FFN's matrices; None where it has no FFN of its own, or experts."""
    return [_ffn_parameters(layer) for layer in CheckpointModel(source)]


def _ffn_parameters(layer: Layer) -> int | None:
    kinds = [kind for kind in ("gate", "up", "down") if kind in layer.kinds]
    return sum(prod(layer.shape(kind)) for kind in kinds) if "down" in kinds else None


def _positions(layer: Layer) -> Mapping[str, np.ndarray]:
    kinds = [kind for kind in ("gate", "up", "down") if kind in layer.kinds]
    if "down" not in kinds or "up" not in kinds:
        return {}
    norms = {kind: _by_position(layer, kind) for kind in kinds}
    loudness = co_magnitude({kind: norm**2 for kind, norm in norms.items()})
    saturated = np.flatnonzero(loudness > robust_threshold(loudness))
    saturated = saturated[np.argsort(-loudness[saturated], kind="stable")]
    others = np.setdiff1d(np.arange(len(loudness)), saturated)
    draw = np.random.default_rng([SEED, layer.index])
    if not 0 < len(saturated) <= len(others):
        return {}
    return {
        "saturated": saturated,
        "random": draw.choice(others, len(saturated), replace=False),
        "as_loud": _nearest(norms["down"], saturated, others),
    }


def _by_position(layer: Layer, kind: str) -> np.ndarray:
    """‖gate[p,:]‖, ‖up[p,:]‖ or ‖down[:,p]‖ of every FFN position, the pre-norm's scale folded in: [f]."""
    matrix = layer.folded(kind).double()
    return torch.linalg.vector_norm(matrix, dim=0 if kind == "down" else 1).numpy()


def _nearest(norms: np.ndarray, wanted: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each of `wanted` in turn, the one of `others` of the nearest norm that is not taken yet."""
    free = list(others)
    return np.array([free.pop(int(np.abs(norms[free] - norms[position]).argmin())) for position in wanted])
