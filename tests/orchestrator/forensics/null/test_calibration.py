"""The bars of SCIENCE §3: layers that chance alone tells apart have no role, whatever law they are drawn from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from models.spec import DecoderSpec
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import LayerReport
from orchestrator.forensics.roles.routing import ROLES
from tests.orchestrator.forensics.laws import LAWS, explode, under
from tests.orchestrator.forensics.untrained import model, spec

pytestmark = pytest.mark.statistical

UNTRAINED, EXCHANGEABLE = 0.02, 0.03  # shares of layers with a role
# Models of 11 layers. Of 264 layers, twice as many as a bar allows have a role in truth, and pass it by chance, once in
# 20 times (2 %) or 100 (3 %); tests/studies/null reads a thousand layers of each law.
FEW, MANY = 24, 92

Models = Callable[[int], nn.Module]  # seed → model


def layers_of(models: Models, seeds: int) -> list[LayerReport]:
    """The layer reports of a model for each seed."""
    return [layer for seed in range(seeds) for layer in analyze(models(seed), resamples=2).layers]


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
    ("name", "of", "seeds"),
    [
        ("uniform", spec(), FEW),
        ("ramp", spec(profile="ramp"), FEW),
        ("24 layers", spec(layers=24), FEW // 2),
    ],
)
def test_untrained(name: str, of: DecoderSpec, seeds: int) -> None:
    paper = judge(name, layers_of(lambda seed: model(of, seed), seeds), UNTRAINED)
    assert paper > 0.4  # what the calibration is for


@pytest.mark.parametrize(("law", "seeds"), [(law, MANY if law == "t(4)" else FEW) for law in LAWS])
def test_layers_of_one_law(law: str, seeds: int) -> None:
    """Roles are rarest but for heavy tails, which come near the bar."""
    judge(law, layers_of(lambda seed: under(LAWS[law], model(spec(), seed), seed), seeds), EXCHANGEABLE)


def test_heavy_tails_in_layers_of_unequal_width() -> None:
    """Values by chance for a shape are those of Gaussian entries."""
    of = spec(profile="ramp")
    judge("t(4), ramp", layers_of(lambda seed: under(LAWS["t(4)"], model(of, seed), seed), FEW), EXCHANGEABLE)


def test_one_layer_that_explodes_gives_the_others_no_role() -> None:
    def exploded(seed: int) -> nn.Module:
        decoder = model(spec(), seed)
        explode(decoder.model.layers[5].mlp.gate_proj.weight, 15, seed)
        return decoder

    others = [layer for layer in layers_of(exploded, FEW) if layer.layer != 5]
    judge("beside an explosion", others, UNTRAINED)


def test_grouped_heads() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=96, intermediate_size=256, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=2, head_dim=12,
    )  # fmt: skip

    def llama(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)

    judge("Llama, grouped heads", layers_of(llama, FEW), UNTRAINED)


def test_no_gate_and_biases() -> None:
    config = GPT2Config(vocab_size=64, n_embd=64, n_layer=12, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0)

    def gpt2(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)

    judge("GPT-2", layers_of(gpt2, FEW), UNTRAINED)
