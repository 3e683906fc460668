"""Adam's moments as torch's own AdamW leaves them, against the definitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from orchestrator.forensics.analyzer import analyze

TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2, n_positions=16)),
}


def _trained(name: str, directory: Path) -> tuple[PreTrainedModel, torch.optim.AdamW, Path]:
    torch.manual_seed(0)
    model = TINY[name]()
    adam = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
    for _ in range(4):
        rows = torch.randint(32, (4, 12))
        model(input_ids=rows, labels=rows).loss.backward()
        adam.step()
        adam.zero_grad()
    model.save_pretrained(directory)
    torch.save(adam.state_dict(), directory / "optimizer.pt")
    return model, adam, directory / "optimizer.pt"


def _down(model: PreTrainedModel, layer: int) -> torch.nn.Parameter:
    block = model.base_model.layers[layer].mlp.down_proj if hasattr(model.base_model, "layers") else None
    found: torch.nn.Parameter = (block or model.base_model.h[layer].mlp.c_proj).weight
    return found


@pytest.mark.parametrize("name", list(TINY))
def test_alignment_with_a_torch_optimizer(name: str, tmp_path: Path) -> None:
    model, adam, path = _trained(name, tmp_path)
    result = analyze(tmp_path, optimizer=path)
    for layer in result.layers:
        weight = _down(model, layer.layer)
        momentum = adam.state[weight]["exp_avg"].double().flatten()
        expected = -torch.cosine_similarity(momentum, weight.double().flatten(), dim=0).item()
        assert layer.measures["momentum_alignment.down"] == pytest.approx(expected, rel=1e-6)
        assert layer.measures["momentum_alignment.down_chance"] == pytest.approx(weight.numel() ** -0.5)
        assert layer.measures["stuck_fraction"] is not None


def test_moments_of_a_fused_matrix_are_cut_like_its_weights(tmp_path: Path) -> None:
    """GPT-2 keeps q, k and v side by side in one transposed matrix [d, 3·d]."""
    model, adam, path = _trained("gpt2", tmp_path)
    result = analyze(tmp_path, optimizer=path)
    for layer in result.layers:
        block: Any = model.get_submodule(f"transformer.h.{layer.layer}")
        weight = block.attn.c_attn.weight
        slices = zip(weight.split(16, dim=1), adam.state[weight]["exp_avg"].split(16, dim=1), strict=True)
        for kind, (w, m) in zip(("q", "k", "v"), slices, strict=True):
            expected = -torch.cosine_similarity(m.double().flatten(), w.double().flatten(), dim=0).item()
            assert layer.measures[f"momentum_alignment.{kind}"] == pytest.approx(expected, rel=1e-6)


def test_stuck_entries_are_those_planted(tmp_path: Path) -> None:
    model, adam, path = _trained("llama", tmp_path)
    state = adam.state[_down(model, 1)]
    state["exp_avg"][:4], state["exp_avg_sq"][:4] = 1e-12, 1e-24
    state["exp_avg"][4:8] = 1e-12  # small by itself is not enough
    torch.save(adam.state_dict(), path)
    rows = [layer.measures for layer in analyze(tmp_path, optimizer=path).layers]
    size = sum(p.numel() for p in model.model.layers[1].parameters() if p.ndim == 2)
    before = [layer.measures["stuck_fraction"] for layer in _without_planting(tmp_path)]
    assert rows[1]["stuck_fraction"] == pytest.approx(before[1] + 4 * 24 / size, abs=8 * 24 / size * 0.01)
    assert rows[0]["stuck_fraction"] == pytest.approx(before[0], abs=1e-3)


def _without_planting(directory: Path) -> Any:
    _, _, path = _trained("llama", directory)
    return analyze(directory, optimizer=path).layers


def test_medians_of_a_sample_are_those_of_all(checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.forensics.architecture.model import CheckpointModel
    from orchestrator.forensics.measures import momentum

    opened = CheckpointModel(checkpoint(widths=(64,) * 3, ffn=200).write())
    whole = momentum.medians(opened)
    monkeypatch.setattr(momentum, "SAMPLED", 3000)
    sampled = momentum.medians(opened)
    assert whole is not None
    assert sampled is not None
    for kind, values in whole.items():
        np.testing.assert_allclose(sampled[kind], values, rtol=0.35)
