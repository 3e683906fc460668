"""The bars of SCIENCE §3: layers that chance alone tells apart have no role, whatever law they are drawn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import LayerReport
from orchestrator.forensics.roles.routing import ROLES
from tests.orchestrator.forensics.laws import LAWS, explode, under
from tests.orchestrator.forensics.untrained import model, spec, write

pytestmark = pytest.mark.statistical

UNTRAINED, EXCHANGEABLE = 0.02, 0.03  # shares of layers with a role
SEEDS = 50
THOUSAND = 92  # seeds of 11 layers

Checkpoints = Callable[[int], Path]  # seed → checkpoint


def layers_of(checkpoints: Checkpoints, seeds: int) -> list[LayerReport]:
    """The layer reports of a checkpoint for each seed."""
    return [layer for seed in range(seeds) for layer in analyze(checkpoints(seed), resamples=2).layers]


def judge(name: str, layers: list[LayerReport], bar: float) -> float:
    """Fails where more than `bar` of the layers have a role; returns the share by the paper's rule."""
    calibrated, paper = (
        sum(role in ROLES for role in roles) / len(layers)
        for roles in ([layer.role for layer in layers], [layer.role_paper for layer in layers])
    )
    told = f"{name}: {calibrated:.4f} of {len(layers)} layers have a role, {paper:.3f} by the paper's rule"
    print(told)
    assert calibrated <= bar, told
    return paper


@pytest.mark.parametrize(
    ("name", "layers", "profile"), [("uniform", 11, "uniform"), ("ramp", 11, "ramp"), ("24 layers", 24, "uniform")]
)
def test_untrained(name: str, layers: int, profile: str, tmp_path: Path) -> None:
    paper = judge(name, layers_of(lambda seed: write(model(spec(layers, profile), seed), tmp_path), SEEDS), UNTRAINED)
    assert paper > 0.4  # what the calibration is for


@pytest.mark.parametrize("law", LAWS)
def test_layers_of_one_law(law: str, tmp_path: Path) -> None:
    found = layers_of(lambda seed: write(under(LAWS[law], model(spec(), seed), seed), tmp_path), THOUSAND)
    judge(law, found, EXCHANGEABLE)


def test_heavy_tails_in_layers_of_unequal_width(tmp_path: Path) -> None:
    """Values by chance for a shape are those of Gaussian entries."""
    of = spec(profile="ramp")
    found = layers_of(lambda seed: write(under(LAWS["t(4)"], model(of, seed), seed), tmp_path), SEEDS)
    judge("t(4), ramp", found, EXCHANGEABLE)


def test_one_layer_that_explodes_gives_the_others_no_role(tmp_path: Path) -> None:
    def exploded(seed: int) -> Path:
        decoder = model(spec(), seed)
        explode(decoder.model.layers[5].mlp.gate_proj.weight, 15, seed)
        return write(decoder, tmp_path)

    others = [layer for layer in layers_of(exploded, SEEDS) if layer.layer != 5]
    judge("beside an explosion", others, UNTRAINED)


def test_grouped_heads(tmp_path: Path) -> None:
    def llama(seed: int) -> Path:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=64, hidden_size=96, intermediate_size=256, num_hidden_layers=12, num_attention_heads=8,
            num_key_value_heads=2, head_dim=12,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path)
        return tmp_path

    judge("Llama, grouped heads", layers_of(llama, 24), UNTRAINED)


def test_no_gate_and_biases(tmp_path: Path) -> None:
    def gpt2(seed: int) -> Path:
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=64, n_embd=64, n_layer=12, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
        return tmp_path

    judge("GPT-2", layers_of(gpt2, 24), UNTRAINED)
