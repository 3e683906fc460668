"""Measures of Adam's moments: the alignment of momentum with the weights, and the share of stuck entries."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import product

import numpy as np
import torch

from orchestrator.forensics.architecture.layer import Layer
from orchestrator.forensics.architecture.model import CheckpointModel

STUCK = 0.01  # of the median: a smaller moment has vanished
SAMPLED = 2**18  # entries of one tensor that enter a median, evenly spread

Medians = dict[str, tuple[float, float]]


def medians(model: CheckpointModel) -> Medians | None:
    """Kind → (median |exp_avg|, median √exp_avg_sq) over all layers.

    None without moments, or where a kind has not been updated yet.
    """
    pooled: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for layer in model:
        for kind, which in product(layer.kinds, ("exp_avg", "exp_avg_sq")):
            moment = layer.moment(kind, which)
            if moment is None:
                return None
            flat = moment.flatten()
            pooled[kind, which].append(flat[:: max(1, flat.numel() // SAMPLED)].clone().numpy())
    entries = {key: np.concatenate(samples) for key, samples in pooled.items()}
    if not entries or not all(values.any() for (_, which), values in entries.items() if which == "exp_avg_sq"):
        return None
    return {
        kind: (
            float(np.median(np.abs(entries[kind, "exp_avg"]))),
            math.sqrt(float(np.median(entries[kind, "exp_avg_sq"]))),
        )
        for kind, _ in entries
    }


def alignment(layer: Layer, kind: str, device: torch.device) -> float | None:
    """cos(−exp_avg, w): the mean over the trace's steps; without a trace, of the checkpoint's own step."""
    if trace := layer.trace(kind):
        return float(np.mean(trace))
    momentum = layer.moment(kind, "exp_avg")
    if momentum is None:
        return None
    m, w = (x.flatten().to(device).double() for x in (momentum, layer.weight(kind)))
    scale = float(m.norm() * w.norm())
    return -float(m @ w) / scale if scale else None


def stuck_fraction(layer: Layer, typical: Medians) -> float:
    """Share of the layer's entries with |m̂| and √v̂ both within 1 % of their kind's median.

    Bias correction multiplies an entry and its median alike, so the raw moments give the same share.
    """
    stuck = size = 0
    for kind in layer.kinds:
        momentum, square = layer.moment(kind, "exp_avg"), layer.moment(kind, "exp_avg_sq")
        assert momentum is not None  # the medians are over the same tensors
        assert square is not None
        first, second = typical[kind]
        stuck += int(((momentum.abs() <= STUCK * first) & (square <= (STUCK * second) ** 2)).sum())
        size += momentum.numel()
    return stuck / size
