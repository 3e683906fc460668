"""Planted outliers are found, graded and named; healthy and degenerate stacks are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.forensics.analysis import analyze


def _with_spectral_norm(ours: Any, layer: int, kind: str, ratio: float) -> None:
    """Scale one tensor so that its norm is `ratio` times the median of its peers'."""
    layers = range(len(ours.spec["layers"]))
    norms = [np.linalg.norm(ours.weight(i, kind), 2) for i in layers]
    peers = np.median([norm for i, norm in enumerate(norms) if i != layer])
    ours.tensors[ours.name(layer, kind)] *= np.float32(ratio * peers / norms[layer])


def test_planted_norms(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16,) * 5)
    _with_spectral_norm(ours, 3, "gate", 12)
    _with_spectral_norm(ours, 1, "down", 40)
    _with_spectral_norm(ours, 2, "q", 9.9)
    critical, warn = analyze(ours.write())["pathology"]
    assert critical == {
        "tensor": "model.layers.1.mlp.down_proj.weight",
        "ratio": pytest.approx(40, rel=1e-5),
        "severity": "critical",
    }
    assert warn == {
        "tensor": "model.layers.3.mlp.gate_proj.weight",
        "ratio": pytest.approx(12, rel=1e-5),
        "severity": "warn",
    }


def test_healthy_stack(checkpoint: Callable[..., Any]) -> None:
    assert analyze(checkpoint(widths=(16,) * 5).write())["pathology"] == []


def test_one_layer_has_no_peers(checkpoint: Callable[..., Any]) -> None:
    assert analyze(checkpoint(widths=(16,)).write())["pathology"] == []


def test_peers_that_are_zero_give_no_scale(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 16, 16))
    for layer in (0, 1):
        ours.tensors[ours.name(layer, "up")][:] = 0
    assert analyze(ours.write())["pathology"] == []
