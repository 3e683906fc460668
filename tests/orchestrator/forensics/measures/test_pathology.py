"""Planted outliers are found, graded and named; healthy, trained and degenerate stacks are left alone (SCIENCE §5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.transformer import Decoder
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.kinds import KINDS
from tests.orchestrator.forensics.untrained import model, spec, write


def _explode(decoder: Decoder, layer: int, kind: str, ratio: float) -> str:
    """Scale one tensor so that its norm is `ratio` times the median of its peers'; its name."""
    name = f"model.layers.{{}}.{'self_attn' if kind in 'qkvo' else 'mlp'}.{kind}_proj.weight"
    weights = dict(decoder.named_parameters())
    norms = [torch.linalg.matrix_norm(weights[name.format(i)], 2).item() for i in range(len(decoder.model.layers))]
    with torch.no_grad():
        weights[name.format(layer)] *= ratio * np.median(np.delete(norms, layer)) / norms[layer]
    return name.format(layer)


@pytest.mark.parametrize(("ratio", "severity"), [(12, "warn"), (40, "critical"), (100, "critical")])
@pytest.mark.parametrize("layer", [0, 5, 10])
@pytest.mark.parametrize("profile", ["uniform", "ramp"])
def test_a_gate_explosion(profile: str, layer: int, ratio: float, severity: str, tmp_path: Path) -> None:
    decoder = model(spec(profile=profile), layer)
    name = _explode(decoder, layer, "gate", ratio)
    (found,) = analyze(write(decoder, tmp_path), resamples=2).pathology
    assert (found.tensor, found.ratio, found.severity) == (name, pytest.approx(ratio, rel=1e-4), severity)


@pytest.mark.parametrize("kind", KINDS)
def test_any_matrix_and_the_worst_first(kind: str, tmp_path: Path) -> None:
    decoder = model(spec(layers=5), 0)
    slight, grave = _explode(decoder, 1, kind, 10.5), _explode(decoder, 3, kind, 31)
    _explode(decoder, 2, "q" if kind != "q" else "k", 9.5)
    found = analyze(write(decoder, tmp_path), resamples=2).pathology
    assert [(f.tensor, f.severity) for f in found] == [(grave, "critical"), (slight, "warn")]


def test_trained_models_are_healthy(tmp_path: Path) -> None:
    for seed in range(3):
        decoder = model(spec(layers=6), seed)
        adam = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
        torch.manual_seed(seed)
        rows = torch.randint(256, (2, 64))
        for _ in range(30):
            decoder.loss(rows).backward()
            adam.step()
            adam.zero_grad()
        assert analyze(write(decoder, tmp_path), resamples=2).pathology == []  # untrained ones: test_calibration


def test_one_layer_has_no_peers_and_two_have_each_other(checkpoint: Callable[..., Any]) -> None:
    assert analyze(checkpoint(widths=(16,)).write()).pathology == []
    ours = checkpoint(widths=(16, 16))
    ours.tensors[ours.name(0, "gate")] *= np.float32(50)
    (found,) = analyze(ours.write()).pathology
    assert found.tensor == ours.name(0, "gate")


def test_peers_that_are_zero_give_no_scale(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 16, 16))
    for layer in (0, 1):
        ours.tensors[ours.name(layer, "up")][:] = 0
    found = analyze(ours.write()).pathology
    assert [f.tensor for f in found] == [ours.name(layer, "up") for layer in (0, 1)]
    assert all(f.severity == "warn" and f.ratio == 0 and "zeros" in f.text for f in found)


@pytest.mark.parametrize("value", [0.0, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_of_one_value(checkpoint: Callable[..., Any], kind: str, value: float) -> None:
    ours = checkpoint(widths=(16,) * 3)
    ours.tensors[ours.name(1, kind)][:] = value
    (found,) = [f for f in analyze(ours.write()).pathology if f.blemish]
    assert (found.tensor, found.severity) == (ours.name(1, kind), "warn")
    assert ("zeros" if value == 0 else str(value)) in found.text


def test_a_kind_that_is_zero_in_every_layer_is_said_once(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16,) * 3)
    for layer in range(3):
        ours.tensors[ours.name(layer, "o")][:] = 0
    (found,) = analyze(ours.write()).pathology
    assert found.tensor == ours.name(0, "o")


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.layers.1.self_attn.q_proj.bias"])
def test_tensors_that_no_measure_reads(checkpoint: Callable[..., Any], name: str, poison: float) -> None:
    ours = checkpoint(widths=(16,) * 3)
    shape = (48, 16) if "head" in name else (16,)
    ours.tensors[name] = np.ones(shape, np.float32)
    ours.tensors[name].flat[-1] = poison
    (found,) = analyze(ours.write()).pathology
    assert (found.tensor, found.severity) == (name, "critical")
    assert "NaN" in found.text


def test_a_head_of_zeros_and_numbers_that_are_no_weights(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16,) * 3)
    vocabulary = len(ours.tensors["model.embed_tokens.weight"])
    ours.tensors["lm_head.weight"] = np.zeros((vocabulary, 16), np.float32)
    ours.tensors["position_ids"] = np.arange(9)
    ours.tensors["model.norm.weight"] = np.zeros(16, np.float32)  # a scale stored less 1
    (found,) = analyze(ours.write()).pathology
    assert (found.tensor, found.severity) == ("lm_head.weight", "warn")
