"""Units of the decay channel and its safety bound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sidecar.channels import CHANNELS, DecayChannel


def test_units_are_the_matrices_of_numbered_layers() -> None:
    params = {
        "model.embed_tokens.weight": torch.zeros(9, 4),
        "model.layers.0.mlp.down_proj.weight": torch.zeros(4, 8),
        "model.layers.0.input_layernorm.weight": torch.zeros(4),
        "model.layers.10.mlp.down_proj.weight": torch.zeros(6, 8),
        "model.layers.5.self_attn.q_proj.weight": torch.zeros(4, 4),
    }
    units = CHANNELS["decay"](params, 1e-3, 0.1).units
    assert [(u.name, u.kind, u.depth, u.size) for u in units] == [
        ("model.layers.0.mlp.down_proj.weight", "mlp.down_proj.weight", 0.0, 32),
        ("model.layers.10.mlp.down_proj.weight", "mlp.down_proj.weight", 1.0, 48),
        ("model.layers.5.self_attn.q_proj.weight", "self_attn.q_proj.weight", 0.5, 16),
    ]


def test_units_of_anybodys_module() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    units = DecayChannel(dict(model.named_parameters()), 1e-3, 0.1).units
    assert [(u.name, u.kind, u.depth) for u in units] == [
        ("0.weight", "weight", 0.0),
        ("2.weight", "weight", 1.0),
    ]


def test_a_single_layer_has_depth_zero() -> None:
    assert DecayChannel({"h.0.w": torch.zeros(2, 2)}, 1e-3, 0.1).units[0].depth == 0.0


def test_parameters_without_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="no weight matrix in a numbered layer among 1 parameters"):
        DecayChannel({"embed.weight": torch.zeros(4, 4)}, 1e-3, 0.1)


@pytest.mark.parametrize("largest", [math.inf, math.nan, 10.0])
def test_a_multiplier_past_the_bound_is_refused_with_its_arithmetic(largest: float) -> None:
    channel = DecayChannel({"h.0.w": torch.zeros(2, 2)}, lr=0.01, weight_decay=1.0)
    channel.check(9.99)
    with pytest.raises(ValueError, match=r"channel 'decay'.*lr·λ·m = 0\.01 · 1 · .*bound is 0\.1"):
        channel.check(largest)
