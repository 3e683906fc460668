"""The stream of random tokens against the probe of the whole model, which runs the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures.stream import LENGTH, ROWS, SEED, STREAMED


def _same_tokens(vocabulary: int) -> list[list[int]]:
    tokens = torch.randint(vocabulary, (ROWS * LENGTH,), generator=torch.Generator().manual_seed(SEED))
    rows: list[list[int]] = tokens.view(ROWS, LENGTH).tolist()
    return rows


def _assert_as_probed(path: Path, vocabulary: int) -> None:
    streamed, probed = analyze(path, resamples=2), analyze(path, resamples=2, tokens=_same_tokens(vocabulary))
    assert set(STREAMED) <= set(streamed.substitutes)
    for a, b in zip(streamed.layers, probed.layers, strict=True):
        for name in STREAMED:
            assert a.measures[name] == pytest.approx(b.measures[name], rel=1e-4), (a.layer, name)


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
@pytest.mark.parametrize("widths", [(16, 16, 16), (12, 24, 16)])
def test_our_models(checkpoint: Callable[..., Any], norm: str, widths: tuple[int, ...]) -> None:
    _assert_as_probed(checkpoint(widths=widths, norm=norm).write(optimizer=False), 32)


@pytest.mark.parametrize("options", [{}, {"rope_theta": 500.0, "rms_norm_eps": 1e-2, "tie_word_embeddings": True}])
def test_transformers_llama(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, **options,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    _assert_as_probed(tmp_path, 50)


@pytest.mark.parametrize(
    "options",
    [{"hidden_act": "gelu"}, {"attention_bias": True}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}],
)
def test_a_model_that_it_cannot_follow_has_no_stream(tmp_path: Path, options: dict[str, Any]) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **options
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert set(STREAMED) <= set(analyze(tmp_path, resamples=2).missing)


def test_tokens_without_an_embedding_are_left_out(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16,) * 3, norm="pre")
    kept = analyze(ours.write(), resamples=2).layers
    first = _same_tokens(32)[0][0]
    ours.tensors["model.embed_tokens.weight"][first] = 0
    for layer, before in zip(analyze(ours.write(), resamples=2).layers, kept, strict=True):
        for name in STREAMED:
            assert layer.measures[name] is not None
            assert layer.measures[name] != before.measures[name]
