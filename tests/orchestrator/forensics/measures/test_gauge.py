"""Measures ignore the order of positions, heads and coordinates, and how gate and up share a scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.forensics.analyzer import analyze

DRAWN = ("saturated_expected", "saturated_robust_expected", "saturated_excess")  # from entries in their stored order
OF_UNEQUAL_SCALES = (  # by definition: they weigh gate and up by their energies
    "spectral_norm.gate", "spectral_norm.up", "attention_share", "balance", "balance_per_parameter",
    "source_mean", "sink_mean", "synapse_mediator",
)  # fmt: skip

Change = Callable[[Any, np.random.Generator], None]


def _reorder(ours: Any, layer: int, kinds: tuple[str, ...], order: np.ndarray, axis: int) -> None:
    """Rows (axis 0) or columns (1) of matrices and of their moments."""
    for name in (ours.name(layer, kind) for kind in kinds):
        ours.tensors[name] = ours.tensors[name].take(order, axis)
        for moment in (f"{name}.exp_avg", f"{name}.exp_avg_sq"):
            ours.moments[moment] = ours.moments[moment].take(order, axis)


def positions(ours: Any, rng: np.random.Generator) -> None:
    for layer, shape in enumerate(ours.spec["layers"]):
        order = rng.permutation(shape["ffn"])
        _reorder(ours, layer, ("gate", "up"), order, 0)
        _reorder(ours, layer, ("down",), order, 1)


def heads(ours: Any, rng: np.random.Generator) -> None:
    """Key/value heads in another order, each with its query heads, these in another order too."""
    for layer, shape in enumerate(ours.spec["layers"]):
        group, size = shape["heads"] // shape["kv_heads"], np.arange(shape["head_dim"])
        shared = rng.permutation(shape["kv_heads"])
        own = np.concatenate([head * group + rng.permutation(group) for head in shared])
        of_shared, of_own = ((order[:, None] * len(size) + size).ravel() for order in (shared, own))
        _reorder(ours, layer, ("q",), of_own, 0)
        _reorder(ours, layer, ("o",), of_own, 1)
        _reorder(ours, layer, ("k", "v"), of_shared, 0)


def coordinates(ours: Any, rng: np.random.Generator) -> None:
    """The residual stream's, in all layers alike."""
    order = rng.permutation(ours.spec["layers"][0]["width"])
    for layer in range(len(ours.spec["layers"])):
        _reorder(ours, layer, ("q", "k", "v", "gate", "up"), order, 1)
        _reorder(ours, layer, ("o", "down"), order, 0)
    for name, tensor in ours.tensors.items():
        if "norm" in name or "embed" in name:
            ours.tensors[name] = tensor.take(order, -1)


def scales(ours: Any, rng: np.random.Generator) -> None:
    for layer in range(len(ours.spec["layers"])):
        ours.tensors[ours.name(layer, "gate")] *= np.float32(4 + layer)
        ours.tensors[ours.name(layer, "up")] /= np.float32(4 + layer)


@pytest.mark.parametrize(
    ("change", "blind"), [(positions, DRAWN), (heads, ()), (coordinates, DRAWN), (scales, (*DRAWN, *OF_UNEQUAL_SCALES))]
)
def test_measures_do_not_see(checkpoint: Callable[..., Any], change: Change, blind: tuple[str, ...]) -> None:
    ours = checkpoint(widths=(16,) * 3, heads=6, kv_heads=2, ffn=90)
    for layer in range(3):  # two kinds of positions, one of which writes against what it reads
        ours.tensors[ours.name(layer, "gate")][:30] *= 5
        ours.tensors[ours.name(layer, "down")][:, :30] = -ours.tensors[ours.name(layer, "up")][:30].T
    before = analyze(ours.write(), resamples=2).layers
    change(ours, np.random.default_rng(0))
    after = analyze(ours.write(), resamples=2).layers
    assert any(layer.measures["unique_roles"] > 1 for layer in before)
    for a, b in zip(before, after, strict=True):
        for key, value in a.measures.items():
            if key not in blind:
                expected = None if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)
                assert b.measures[key] == expected, key
    for key in set(blind) - set(DRAWN):
        assert any(a.measures[key] != b.measures[key] for a, b in zip(before, after, strict=True)), key
