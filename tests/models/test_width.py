"""Width profiles and matching, against arithmetic done by hand and counts of built models."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.spec import DecoderSpec, forward_flops_per_token, num_params
from models.transformer import Decoder, init_weights
from models.width import build_spec, layer_shapes, profile_widths
from tests.naming import naming

PAPER_478M = {
    "layers": 11, "width": 1168, "head_dim": 64, "heads": "nearest", "vocab_size": 117_000, "tie_embeddings": False,
    "seq_len": 128,
}  # fmt: skip
PAPER_24L = PAPER_478M | {"layers": 24, "width": 1088, "heads": "exact", "vocab_size": 50_304}
PAPER_RAMP = {"profile": "ramp", "start": 0.876712, "end": 1.174658}
TINY = {"layers": 11, "width": 64, "head_dim": 8, "vocab_size": 264, "seq_len": 128}


def tiny(**options: object) -> DecoderSpec:
    return build_spec(**{**TINY, **options})  # type: ignore[arg-type]


def test_the_papers_ramp() -> None:
    widths = profile_widths("ramp", 11, 1168, 0.876712, 1.174658, multiple_of=4)
    assert (widths[0], widths[-1]) == (1024, 1372)
    assert widths == sorted(widths)
    assert all(w % 4 == 0 for w in widths)
    steps = [b - a for a, b in itertools.pairwise(widths)]
    assert set(steps) <= {32, 36}  # 34.8 on a grid of 4


def test_x_shape_is_narrowest_three_quarters_down() -> None:
    widths = profile_widths("x_shape", 9, 100, 1.2, 0.6)
    assert widths == [120, 110, 100, 90, 80, 70, 60, 90, 120]


def test_given_widths_are_taken_as_they_are() -> None:
    assert profile_widths("uniform", 3, 100, multiple_of=64) == [100] * 3
    assert profile_widths("explicit", 3, 100, widths=[7, 90, 64], multiple_of=64) == [7, 90, 64]


def test_a_profile_is_at_least_one_grid_step_wide() -> None:
    assert profile_widths("ramp", 2, 8, 0.1, 2.0, multiple_of=8) == [8, 16]
    assert profile_widths("ramp", 1, 64, 0.5, 2.0) == [32]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"kind": "rmap"}, ["profile=rmap", "uniform", "explicit", "ramp", "x_shape"]),
        ({"kind": "explicit"}, ["widths=[…]", "profile=explicit"]),
        ({"kind": "ramp", "widths": [64] * 3}, ["widths=[64, 64, 64]", "profile=ramp", "profile=explicit"]),
        ({"kind": "explicit", "widths": [64, 64]}, ["widths=[64, 64]", "layers=3"]),
        ({"kind": "explicit", "widths": [64, 0, 64]}, ["widths=[64, 0, 64]", "positive"]),
        ({"kind": "ramp", "start": -1.0}, ["start=-1.0", "positive"]),
        ({"kind": "ramp", "end": float("nan")}, ["end=nan", "positive"]),
        ({"kind": "ramp", "multiple_of": 0}, ["multiple_of=0", "positive"]),
    ],
)
def test_impossible_profiles_are_refused(arguments: dict, named: list[str]) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        profile_widths(**{"layers": 3, "base": 64, **arguments})


def test_exact_heads_divide_or_say_what_would() -> None:
    shapes = layer_shapes([64, 96], head_dim=8, queries_per_kv=4)
    assert [(s.heads, s.kv_heads, s.ffn) for s in shapes] == [(8, 2, 192), (12, 3, 288)]
    named = ["head_dim=48", "width 64", "layer 1", "48", "96", "head_dim=32", "heads=nearest"]
    with pytest.raises(ValueError, match=naming(*named)):
        layer_shapes([48, 64], head_dim=48)
    with pytest.raises(ValueError, match=naming("head_dim", "queries_per_kv", "24", "width 64", "layer 0")):
        layer_shapes([64], head_dim=8, queries_per_kv=3)


@given(width=st.integers(2, 400), head_dim=st.integers(1, 64).map(lambda n: 2 * n), queries=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_suggested_sizes_work(width: int, head_dim: int, queries: int) -> None:
    try:
        layer_shapes([width], head_dim, "exact", queries)
    except ValueError as error:
        widths, _, head_dims = str(error).partition(": use ")[2].partition("head_dim=")
        for better in re.findall(r"\d+", widths):
            layer_shapes([int(better)], head_dim, "exact", queries)
        for better in re.findall(r"\d+", head_dims):
            layer_shapes([width], int(better), "exact", queries)
    else:
        assert width % (head_dim * queries) == 0


def test_equal_heads_grow_with_the_layer() -> None:
    shapes = layer_shapes([56, 64, 72], 16, "equal", base=64)
    assert [(s.heads, s.head_dim, s.attention_width) for s in shapes] == [(4, 14, 56), (4, 16, 64), (4, 18, 72)]
    grouped = layer_shapes([48, 80], 16, "equal", queries_per_kv=2, base=64)
    assert [(s.heads, s.kv_heads, s.head_dim) for s in grouped] == [(4, 2, 12), (4, 2, 20)]
    spec = build_spec(**TINY | PAPER_RAMP | {"head_dim": 16, "heads": "equal", "match": "params"})  # type: ignore[arg-type]
    assert {shape.heads for shape in spec.layers} == {4}
    assert [shape.width for shape in spec.layers] == [56] * 4 + [64] * 4 + [72] * 3
    with pytest.raises(ValueError, match=naming("width 60", "layer 1", "4 heads", "56", "64", "heads=nearest")):
        layer_shapes([64, 60], 16, "equal", base=64)
    with pytest.raises(ValueError, match=naming("head_dim=24", "width 64", "uniform model", "heads=nearest")):
        layer_shapes([64], 24, "equal", base=64)


def test_nearest_heads_round_to_whole_groups() -> None:
    assert [s.heads for s in layer_shapes([1024, 1168, 1372, 8], 64, "nearest")] == [16, 18, 21, 1]
    shapes = layer_shapes([100, 8], 8, "nearest", queries_per_kv=4)
    assert [(s.heads, s.kv_heads) for s in shapes] == [(12, 3), (4, 1)]


def test_the_papers_ffn_is_three_times_as_wide() -> None:
    assert build_spec(**PAPER_478M).layers[0].ffn == 3504  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        (PAPER_478M, 460e6, 475e6),
        (PAPER_478M | PAPER_RAMP, 480e6, 495e6),
        (PAPER_478M | PAPER_RAMP | {"match": "params"}, 460e6, 475e6),
        (PAPER_24L, 470e6, 490e6),
    ],
)
def test_the_papers_models_build_without_memory(options: dict, low: float, high: float) -> None:
    spec = build_spec(**options)
    with torch.device("meta"):
        model = Decoder(spec)
    assert num_params(spec) == sum(p.numel() for p in model.parameters())
    assert low < num_params(spec) < high
    assert model(torch.zeros(1, 8, dtype=torch.long, device="meta")).shape == (1, 8, spec.vocab_size)


def test_explicit_equal_widths_are_bitwise_uniform() -> None:
    rows = torch.randint(0, 264, (2, 33), generator=torch.Generator().manual_seed(0))
    results = []
    for options in ({}, {"profile": "explicit", "widths": [64] * 11}, {"profile": "ramp", "match": "params"}):
        model = Decoder(tiny(**options))
        init_weights(model, 3)
        loss = model.loss(rows)
        loss.backward()
        results.append((model(rows), [p.grad for p in model.parameters()]))
    (logits, grads), *others = results
    for other_logits, other_grads in others:
        assert torch.equal(logits, other_logits)
        assert all(torch.equal(a, b) for a, b in zip(grads, other_grads, strict=True))  # type: ignore[arg-type]


def test_matching_keeps_the_ffn_ratio_where_widths_alone_suffice() -> None:
    matched = build_spec(**(PAPER_478M | PAPER_RAMP | {"match": "params"}))  # type: ignore[arg-type]
    assert all(shape.ffn == 3 * shape.width for shape in matched.layers)


COST = {"params": lambda spec: num_params(spec), "flops": lambda spec: forward_flops_per_token(spec, 128)}


@given(
    profile=st.sampled_from(["ramp", "x_shape"]),
    match=st.sampled_from(["params", "flops"]),
    start=st.floats(0.5, 2.0),
    end=st.floats(0.5, 2.0),
    layers=st.integers(4, 24),
    width=st.integers(8, 40).map(lambda n: 8 * n),
    heads=st.sampled_from(["exact", "nearest"]),
    tied=st.booleans(),
    norm=st.sampled_from(["pre", "sandwich"]),
)
@settings(max_examples=80, deadline=None)
def test_matched_models_cost_the_same(match: str, **options: object) -> None:
    tied = options.pop("tied")
    common = tiny(**{k: options[k] for k in ("layers", "width", "heads", "norm")}, tie_embeddings=tied)
    matched = tiny(**options, match=match, tie_embeddings=tied)
    assert COST[match](matched) == pytest.approx(COST[match](common), rel=0.005)
    assert {shape.head_dim for shape in matched.layers} == {8}
    grid = 8 if options["heads"] == "exact" else 4
    assert all(shape.width % grid == 0 for shape in matched.layers)


def test_matching_explicit_widths_moves_only_the_ffn() -> None:
    widths = [56] * 6 + [64] * 5
    matched = tiny(profile="explicit", widths=widths, match="params")
    assert [shape.width for shape in matched.layers] == widths
    assert num_params(matched) == pytest.approx(num_params(tiny()), rel=0.005)


def test_impossible_matches_are_refused() -> None:
    with pytest.raises(ValueError, match=naming("0.5%", "multiple_of", "match=none")):
        tiny(profile="explicit", widths=[128] * 11, match="params")
    with pytest.raises(ValueError, match=naming("match=time", "none", "params", "flops")):
        tiny(profile="ramp", match="time")
    with pytest.raises(ValueError, match=naming("heads=most", "nearest")):
        tiny(heads="most")
