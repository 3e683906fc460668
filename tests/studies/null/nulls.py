"""Candidate nulls: the spread of the peers, as the product has it or by other deviations, and resampled weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from math import log, pi, sqrt
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from models.transformer import Decoder
from orchestrator.forensics.analyzer import expected_by_shape, read_stack
from orchestrator.forensics.architecture.live import live
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.table import measure
from orchestrator.forensics.roles import scoring
from orchestrator.forensics.roles.routing import CALIBRATED, MARGIN, decide
from orchestrator.forensics.roles.treatments import TREATMENTS, Treatment
from tests.orchestrator.forensics.laws import matrices

RESAMPLES = 5
WRITES = (3, 6)  # o and down in `laws.matrices`: the vectors along the residual stream are their columns
ROUTED = {treatment.measure or feature for feature, treatment in TREATMENTS.items()} | {"stream_rms"}
NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
Rows = list[dict[str, float | None]]  # per layer: measure → value
Null = Callable[[Tensor], Callable[[torch.Generator], Tensor]]  # a matrix, a vector of the stream per row → its redraws
Deviations = Callable[[np.ndarray], np.ndarray]  # [..., n] → what a distance is compared with, [..., n] or [..., 1]


def read(decoder: Decoder) -> tuple[Rows, list[dict[str, np.ndarray]]]:
    """The routed measures of every layer, and their values by chance where the layers' shapes differ."""
    stack = read_stack(CheckpointModel(live(decoder)), torch.device("cpu"))
    return [measure(layer, ROUTED) for layer in stack.layers], expected_by_shape(stack, 0)


# Peers


def median_deviation(values: np.ndarray) -> np.ndarray:
    """MAD in units of a Gaussian's standard deviation."""
    centred = np.abs(values - np.median(values, axis=-1, keepdims=True))
    return 1.4826 * np.median(centred, axis=-1, keepdims=True)


def deviation_of_others(values: np.ndarray) -> np.ndarray:
    """The standard deviation of the other layers."""
    n = values.shape[-1] - 1
    total, squares = values.sum(axis=-1, keepdims=True) - values, np.square(values).sum(axis=-1, keepdims=True)
    return np.sqrt(np.maximum((squares - np.square(values) - np.square(total) / n) / (n - 1), 0))


@cache
def one_in_a_thousand(deviations: Deviations, layers: int) -> float:
    """The distance from the median, over `deviations`, that one Gaussian layer in a thousand exceeds."""
    values = np.random.default_rng(0).normal(size=(100_000, layers))
    values -= np.median(values, axis=1, keepdims=True)
    return float(np.quantile(np.abs(values) / deviations(values), 0.999))


def beside_peers(rows: Rows, expected: scoring.Chance, deviations: Deviations) -> list[str]:
    """The product's calibrated roles with another spread of the peers."""
    replaced = {"spread": deviations, "limit": lambda layers: one_in_a_thousand(deviations, layers)}
    with patch.multiple(scoring, **replaced):
        return [role.role for role in scoring.calibrated(rows, expected)]


# Resampled weights


def _drawn_again(values: Tensor, rng: torch.Generator) -> Tensor:
    return values.flatten()[torch.randint(values.numel(), values.shape, generator=rng)]


def entries(w: Tensor) -> Callable[[torch.Generator], Tensor]:
    """Entries drawn with replacement."""
    return lambda rng: _drawn_again(w, rng)


def within_scales(w: Tensor) -> Callable[[torch.Generator], Tensor]:
    """Row and column scales factored out, the entries of what is left drawn with replacement, the scales put back."""
    scale = _scales(w)
    return lambda rng: _drawn_again(w / scale, rng) * scale


def beside_low_rank(w: Tensor) -> Callable[[torch.Generator], Tensor]:
    """The same, and of what is left the singular directions beyond the Marchenko–Pastur edge stay as they are."""
    scale = _scales(w)
    u, s, vt = torch.linalg.svd(w / scale, full_matrices=False)
    (m, n), rank = w.shape, 0
    for _ in range(5):  # the edge is that of the noise alone
        noise = float(s[rank:].square().sum()) / ((m - rank) * (n - rank))
        rank = min(int((s > noise**0.5 * (m**0.5 + n**0.5)).sum()), len(s) - 1)
    kept = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return lambda rng: (kept + _drawn_again(w / scale - kept, rng)) * scale


def vectors(w: Tensor) -> Callable[[torch.Generator], Tensor]:
    """Rows drawn with replacement."""
    return lambda rng: w[torch.randint(len(w), (len(w),), generator=rng)]


def _scales(w: Tensor) -> Tensor:
    """r·cᵀ such that the squared entries of w over it have mean 1 in every row and column: [m, n]."""
    squares, columns = w.square(), torch.ones(w.shape[1])
    for _ in range(20):
        rows = (squares / columns).mean(1)
        columns = (squares / rows[:, None]).mean(0)
    return torch.outer(rows, columns).sqrt()


@torch.no_grad()
def redrawn(decoder: Decoder, null: Null, seed: int) -> Iterator[Decoder]:
    """`RESAMPLES` models with every layer's matrices redrawn, and norm scales drawn from those of all layers."""
    draws = [[null(w.T if i in WRITES else w) for i, w in enumerate(layer)] for layer in matrices(decoder)]
    for resample in range(RESAMPLES):
        other, rng = deepcopy(decoder), torch.Generator().manual_seed(RESAMPLES * seed + resample)
        for layer, of_layer in zip(matrices(other), draws, strict=True):
            for i, (weight, draw) in enumerate(zip(layer, of_layer, strict=True)):
                weight.copy_(draw(rng).T if i in WRITES else draw(rng))
        for place in NORMS:
            scales = torch.stack([getattr(block, place).weight for block in decoder.model.layers])
            for block, gamma in zip(other.model.layers, _drawn_again(scales, rng), strict=True):
                getattr(block, place).weight.copy_(gamma)
        yield other


def beside_resamples(rows: Rows, resampled: Sequence[Rows]) -> list[str]:
    """Roles where a layer lies farther from its peers than its resamples' spread gives.

    What depends on a layer's shape or depth is compared after the mean of the layer's own resamples is taken off; other
    measures are as they are, as resampling keeps most of them. Layers share one variance, as few resamples would not
    give each its own. The bar is the expected largest of as many Gaussian values as there are layers and features.
    """
    z: list[dict[str, float]] = [{} for _ in rows]
    columns = {f: (t, y) for f, t in TREATMENTS.items() if (y := _values(rows, f, t)) is not None}
    largest = sqrt(2 * log(len(rows) * len(columns)))
    for feature, (treatment, y) in columns.items():
        noise = np.array([_values(other, feature, treatment) for other in resampled])  # [R, L]
        e = y - noise.mean(axis=0) if treatment.shaped or treatment.growth else y
        e = e - np.median(e)
        variance = max(noise.var(axis=0, ddof=1).mean(), treatment.noise**2)
        variance *= (1 + 1 / len(resampled)) * (1 + pi / (2 * len(rows)))  # of the mean taken off, and of the median
        bar = largest * sqrt(variance)
        ratio = np.divide(bar**2, e**2, out=np.ones_like(e), where=np.abs(e) > bar)
        spread = sqrt(np.square(e).mean()) or 1.0
        for layer, score in zip(z, np.clip(e / spread * (1 - ratio), -3, 3), strict=True):
            layer[feature] = float(score)
    return [decide(layer, CALIBRATED, above=0.5 + MARGIN).role for layer in z]


def _values(rows: Sequence[Mapping[str, float | None]], feature: str, treatment: Treatment) -> np.ndarray | None:
    """The feature's transformed values, less what the stream's growth gives each depth: [L]; None if one is absent."""
    values = [row.get(treatment.measure or feature) for row in rows]
    if None in values:
        return None
    rms = np.array([row["stream_rms"] for row in rows], dtype=float)
    return treatment.transform(np.array(values, dtype=float)) - treatment.growth * np.log(rms)


PEERS: dict[str, Deviations] = {
    "peers, by MAD": median_deviation, "peers, by the others' deviation": deviation_of_others,
}  # fmt: skip
RESAMPLED: dict[str, Null] = {
    "entries": entries, "within row and column scales": within_scales, "the same, low rank kept": beside_low_rank,
    "rows": vectors,
}  # fmt: skip
