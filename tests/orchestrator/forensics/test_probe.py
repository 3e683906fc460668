"""The probe against the hidden states that transformers reports for the same weights and tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.errors import UserError
from orchestrator.forensics.analysis import analyze


def _llama_as_ours(directory: Path) -> LlamaForCausalLM:
    """A Llama on disk in our own format."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=False, rms_norm_eps=1e-6)).eval()
    model.save_pretrained(directory)
    (directory / "config.json").unlink()
    layer = {"width": 24, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 40}
    spec = {"layers": [layer] * 3, "vocab_size": 64, "norm": "pre", "tie_embeddings": False}
    spec |= {"rope_theta": 10_000.0, "norm_eps": 1e-6}
    (directory / "state.json").write_text(json.dumps({"schema": 1, "step": 3, "spec": spec}))
    return model


def test_against_the_hidden_states_of_transformers(tmp_path: Path) -> None:
    model = _llama_as_ours(tmp_path)
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    last: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda _, __, output: last.append(output))  # before the final norm
    with torch.no_grad():
        states = [x.double() for x in model(tokens, output_hidden_states=True).hidden_states[:-1]]
    states.append(last[0].double())

    layers = analyze(tmp_path, tokens=tokens)["layers"]
    for layer, before, after in zip(layers, states[:-1], states[1:], strict=True):
        norms = before.norm(dim=-1), after.norm(dim=-1)
        write = ((after - before).norm(dim=-1) / norms[0]).mean().item()
        alignment = ((before * after).sum(-1) / norms[0] / norms[1]).mean().item()
        assert layer["measures"]["total_write"] == pytest.approx(write, rel=1e-5)
        assert layer["measures"]["adjacent_alignment"] == pytest.approx(alignment, rel=1e-5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0, 64]], "outside the vocabulary of 64"),
        ([[-1, 3]], "outside the vocabulary of 64"),
        ([0, 1], "give integers"),
        ([[0.5]], "give integers"),
        ([[]], "give integers"),
    ],
)
def test_tokens_that_cannot_be_run(tmp_path: Path, tokens: Any, message: str) -> None:
    _llama_as_ours(tmp_path)
    with pytest.raises(UserError, match=message):
        analyze(tmp_path, tokens=tokens)


def test_only_our_own_checkpoints_are_run(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not one of our checkpoints"):
        analyze(tmp_path, tokens=[[1, 2]])


def test_prefix_layers_of_different_width(checkpoint: Callable[..., Any]) -> None:
    layers = analyze(checkpoint(widths=(16, 24, 8)).write(), tokens=[[1, 2, 3]])["layers"]
    assert all(layer["measures"]["total_write"] > 0 for layer in layers)
    assert all(-1 <= layer["measures"]["adjacent_alignment"] <= 1 for layer in layers)
