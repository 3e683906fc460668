"""Partners: few where layers are of one law, and those that were planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.measures.composition import expected
from orchestrator.forensics.measures.heads import drawn_fingerprints, expected_match, matches_of
from orchestrator.forensics.null.partners import above_peers


@pytest.mark.parametrize("heads", [Heads(4, 4, 16), Heads(12, 4, 16)])
def test_the_best_match_by_chance_is_that_of_drawn_heads(heads: Heads) -> None:
    rng = np.random.default_rng(0)
    matches = matches_of([drawn_fingerprints(heads, 192, rng) for _ in range(60)])
    assert expected_match(heads.heads, heads.heads, 192) == pytest.approx(np.nanmean(matches), rel=0.03)


def test_heads_by_chance_have_few_partners() -> None:
    heads, rng = Heads(8, 4, 16), np.random.default_rng(0)
    chance = np.full((16, 16), expected_match(8, 8, 64))
    stacks = [matches_of([drawn_fingerprints(heads, 64, rng) for _ in range(16)]) for _ in range(100)]
    pairs = [above_peers(matches, chance, maxima=True) for matches in stacks]
    assert np.mean([found.sum() / (16 * 15) for found in pairs]) < 0.005


def test_layers_by_chance_have_few_partners() -> None:
    rng = np.random.default_rng(0)
    chance = np.full((16, 16), expected(64, 64))
    pairs = [above_peers(chance * np.exp(rng.normal(0, 0.02, (16, 16))), chance) for _ in range(100)]
    assert np.mean([found.sum() / (16 * 15) for found in pairs]) < 0.003


def test_a_planted_spine(checkpoint: Callable[..., Any]) -> None:
    """Layers 1, 3 and 5 write and read one direction, and share a head."""
    ours = checkpoint(widths=(64,) * 8, kv_heads=4)
    rng = np.random.default_rng(1)
    direction, v, o = rng.normal(size=64), rng.normal(size=(6, 64)), rng.normal(size=(64, 6))
    for layer in (1, 3, 5):
        ours.tensors[ours.name(layer, "down")] += 3 * np.outer(direction, rng.normal(size=40)).astype(np.float32)
        ours.tensors[ours.name(layer, "up")] += 3 * np.outer(rng.normal(size=40), direction).astype(np.float32)
        for norm in ("input", "pre_feedforward"):
            ours.tensors[f"model.layers.{layer}.{norm}_layernorm.weight"][:] = 1
        ours.tensors[ours.name(layer, "v")][:6] = v
        ours.tensors[ours.name(layer, "o")][:, :6] = o
    reading = analyze(ours.write())
    for measure in ("composition_partners", "coupling_partners"):
        assert [layer.measures[measure] for layer in reading.layers] == [0, 2, 0, 2, 0, 2, 0, 0], measure
    assert reading.matrices is not None
    composition = np.array(reading.matrices.composition, dtype=float)
    coupling = np.array(reading.matrices.coupling, dtype=float)
    assert composition.shape == (9, 9)
    assert coupling.shape == (8, 8)
    assert (coupling[1, 3], coupling[3, 5]) == pytest.approx((1, 1))
    for layer in reading.layers:
        into = composition[: layer.layer + 1, layer.layer]
        assert layer.measures["sink_mean"] == pytest.approx(into.mean(), rel=1e-3)
        out = composition[layer.layer + 1, layer.layer + 1 :]
        assert layer.measures["source_mean"] == pytest.approx(out.mean(), rel=1e-3)
        assert np.isnan(composition[layer.layer + 1, : layer.layer + 1]).all()
        assert layer.measures["coupling"] == pytest.approx(np.nanmean(coupling[layer.layer]), rel=1e-3)


def test_too_few_pairs_have_no_partners(checkpoint: Callable[..., Any]) -> None:
    layer = analyze(checkpoint(widths=(16, 16)).write()).layers[0]
    assert layer.measures["composition_partners"] is layer.measures["coupling_partners"] is None
