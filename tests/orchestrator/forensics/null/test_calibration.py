"""The bar of SCIENCE §3: at most 2 % of the layers of untrained models carry a role, 50 seeds a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from models.transformer import Decoder
from orchestrator.forensics.analyzer import analyze
from tests.orchestrator.forensics.untrained import model, spec, write

pytestmark = pytest.mark.statistical

BAR = 0.02


def _rates(checkpoints: Callable[[int], Path], seeds: int) -> tuple[float, float]:
    """Shares of layers with a role under calibrated scoring and under the paper's rule; none is pathological."""
    calibrated, paper = [], []
    for seed in range(seeds):
        result = analyze(checkpoints(seed), seed=seed)
        assert result.pathology == []
        calibrated += ["/" not in layer.role for layer in result.layers]
        paper += ["/" not in layer.role_paper for layer in result.layers]
    return sum(calibrated) / len(calibrated), sum(paper) / len(paper)


def _told(name: str, rates: tuple[float, float]) -> str:
    told = f"{name}: {rates[0]:.4f} of the layers have a role under calibrated scoring, {rates[1]:.3f} by the paper's"
    print(told)
    return told


@pytest.mark.parametrize(
    ("name", "layers", "profile"), [("uniform", 11, "uniform"), ("ramp", 11, "ramp"), ("24 layers", 24, "uniform")]
)
def test_the_bar(name: str, layers: int, profile: str, tmp_path: Path) -> None:
    rates = _rates(lambda seed: write(model(spec(layers, profile), seed), tmp_path), 50)
    told = _told(name, rates)
    assert rates[0] <= BAR, told
    assert rates[1] > 0.4, told  # what the calibration is for


def _heavy(decoder: Decoder, seed: int) -> Decoder:
    """The same model with entries of Student's t, 4 degrees of freedom, of the same variance."""
    torch.manual_seed(seed)
    law = torch.distributions.StudentT(4.0)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim == 2:
                weight.copy_(law.sample(weight.shape) / 2**0.5 * weight.std())
    return decoder


@pytest.mark.parametrize("profile", ["uniform", "ramp"])
def test_heavy_tailed_entries(profile: str, tmp_path: Path) -> None:
    rates = _rates(lambda seed: write(_heavy(model(spec(profile=profile), seed), seed), tmp_path), 20)
    told = _told(f"t(4), {profile}", rates)
    assert rates[0] <= BAR, told


def test_grouped_heads(tmp_path: Path) -> None:
    def llama(seed: int) -> Path:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=64, hidden_size=96, intermediate_size=256, num_hidden_layers=12, num_attention_heads=8,
            num_key_value_heads=2, head_dim=12,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path)
        return tmp_path

    rates = _rates(llama, 24)
    told = _told("Llama, grouped heads", rates)
    assert rates[0] <= BAR, told


def test_no_gate_and_biases(tmp_path: Path) -> None:
    def gpt2(seed: int) -> Path:
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=64, n_embd=64, n_layer=12, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
        return tmp_path

    rates = _rates(gpt2, 24)
    told = _told("GPT-2", rates)
    assert rates[0] <= BAR, told
