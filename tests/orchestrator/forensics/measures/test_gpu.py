"""On an accelerator weights are reduced in batches and in float64: the result is the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures.spectrum import spectra

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def test_a_whole_reading_is_the_cpus(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=320, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    here, there = (analyze(tmp_path, device=device) for device in ("cpu", "cuda"))
    for a, b in zip(here.layers, there.layers, strict=True):
        assert a.role == b.role
        for key, value in a.measures.items():
            assert b.measures[key] == pytest.approx(value, rel=1e-4, abs=1e-7), key


def test_batched_spectra_are_those_of_a_decomposition() -> None:
    shapes = [(96, 96), (256, 96), (96, 256), (64, 96), (96, 64)]
    matrices = {str(i): torch.randn(shape, device="cuda") for i, shape in enumerate(shapes)}
    for name, values in spectra(matrices, {}).items():
        expected = torch.linalg.svdvals(matrices[name].double()).flip(0).cpu().numpy()
        assert values == pytest.approx(expected, rel=1e-5)
