"""Calibration: what edits need to know of a model, from its weights and from an intact pass over the text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.transformer import read_prefix
from orchestrator.forensics.architecture.layer import Layer
from orchestrator.forensics.architecture.live import Live
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.statistics import co_magnitude, robust_threshold
from orchestrator.interventions.passes import Pass

SEED = 0  # of the random positions


@dataclass(frozen=True)
class Calibration:
    """Per layer: its mean write [D], the mean ‖x_{l+1}‖/‖x_l‖ over positions, and named sets of FFN positions."""

    writes: list[Tensor]
    growth: list[float]
    positions: list[Mapping[str, np.ndarray]]


def calibrate(passes: Iterable[Pass], positions: list[Mapping[str, np.ndarray]]) -> Calibration:
    """The calibration by intact passes over the text, each position with the same weight; padding has none."""
    count = 0
    writes: list[Tensor] = []
    growth: list[float] = []
    for one in passes:
        for layer, (before, after) in enumerate(one.streams()):  # each [positions, D]
            width = one.subject.width(layer) or before.shape[-1]
            write = (after - before).double().sum(0)
            ratio = read_prefix(after, width).double().norm(dim=-1) / read_prefix(before, width).double().norm(dim=-1)
            lengthened = float(ratio[ratio.isfinite()].sum())
            if count == 0:
                writes.append(write)
                growth.append(lengthened)
            else:
                writes[layer] += write
                growth[layer] += lengthened
        count += one.positions
    return Calibration([(total / count).float() for total in writes], [total / count for total in growth], positions)


def ffn_positions(source: Path | Live) -> list[Mapping[str, np.ndarray]]:
    """Per layer, the saturated FFN positions and two sets as many of others; nothing for a layer without any.

    `saturated`: those of `saturated_robust` (SCIENCE §1). `random`: drawn from the others with a fixed seed. `as_loud`:
    for each, the loudest first, the one among the others whose write ‖down[:,p]‖ is nearest to its own.
    """
    return [_positions(layer) for layer in CheckpointModel(source)]


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
