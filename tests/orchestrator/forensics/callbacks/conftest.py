"""A tiny Llama and its training data, for real runs of both trainers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture
def model() -> LlamaForCausalLM:
    """The same random model each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture
def rows() -> list[dict[str, list[int]]]:
    """80 rows of 12 tokens."""
    tokens = torch.randint(32, (80, 12), generator=torch.Generator().manual_seed(1)).tolist()
    return [{"input_ids": row, "labels": row} for row in tokens]


@pytest.fixture
def lines() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads JSON lines."""
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]
