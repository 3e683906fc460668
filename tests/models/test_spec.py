"""Specs that no decoder fits are refused; costs are compared with built models and torch's FLOP counter."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.spec import DecoderSpec, LayerShape, body_params, forward_flops_per_token, num_params
from models.transformer import Decoder
from tests.naming import naming

LAYERS = (LayerShape(16, 2, 2, 8, 40), LayerShape(32, 4, 2, 8, 96), LayerShape(24, 3, 1, 4, 50))


def spec(layers: tuple[LayerShape, ...] = LAYERS, **options: object) -> DecoderSpec:
    return DecoderSpec(layers, 50, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts_equal_a_built_model(norm: str, tied: bool) -> None:
    shaped = spec(norm=norm, tie_embeddings=tied)
    model = Decoder(shaped)
    assert num_params(shaped) == sum(p.numel() for p in model.parameters())
    assert body_params(shaped) == sum(p.numel() for p in model.model.layers.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_flops_equal_torchs_counter(tied: bool) -> None:
    shaped = spec(tie_embeddings=tied)
    model, rows = Decoder(shaped), torch.zeros(3, 20, dtype=torch.long)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # others go uncounted on CPU
        model(rows)
    assert counter.get_total_flops() == forward_flops_per_token(shaped, 20) * rows.numel()


def test_spec_survives_json() -> None:
    shaped = spec(norm="pre", tie_embeddings=False, rope_theta=500.0)
    assert DecoderSpec.from_dict(json.loads(json.dumps(shaped.to_dict()))) == shaped


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ((64, 4, 4, 15, 192), ["head_dim=15", "even"]),
        ((64, 4, 3, 16, 192), ["kv_heads=3", "heads=4"]),
        ((64, 0, 1, 16, 192), ["heads=0"]),
        ((64, 4, 4, 16, 192.5), ["ffn=192.5"]),
    ],
)
def test_impossible_shapes_are_refused(sizes: tuple[int, ...], named: list[str]) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        LayerShape(*sizes)


def test_impossible_specs_are_refused() -> None:
    with pytest.raises(ValueError, match="one layer"):
        spec(())
    with pytest.raises(ValueError, match=naming("norm='post'", "pre", "sandwich")):
        spec(norm="post")
    with pytest.raises(ValueError, match=naming("norm_eps=0.0")):
        spec(norm_eps=0.0)
    for broken in (
        {},
        {**spec().to_dict(), "colour": "red"},
        {**spec().to_dict(), "layers": [{"width": 8}]},
    ):
        with pytest.raises(ValueError, match="decoder spec"):
            DecoderSpec.from_dict(broken)


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dropped", [[0], [1], [2], [0, 2], []])
def test_without_layers_embedding_and_head_stay_as_they_are(norm: str, tied: bool, dropped: list[int]) -> None:
    whole = spec(norm=norm, tie_embeddings=tied)
    less = whole.without(dropped)
    assert less.layers == tuple(shape for layer, shape in enumerate(LAYERS) if layer not in dropped)
    names = ("embed_width", "head_width", "table_width", "embed_scale")
    assert [getattr(less, name) for name in names] == [getattr(whole, name) for name in names]
    assert DecoderSpec.from_dict(json.loads(json.dumps(less.to_dict()))) == less
    assert num_params(less) == sum(parameter.numel() for parameter in Decoder(less).parameters())
    assert less.without([]) == less
    with pytest.raises(ValueError, match="one layer"):
        whole.without([0, 1, 2])
