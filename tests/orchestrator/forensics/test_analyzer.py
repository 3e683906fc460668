"""The result as a whole: its shape, what it says is missing, where its reference comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.common.errors import UserError
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures.stream import STREAMED
from orchestrator.forensics.reading import DEFINITIONS, SCHEMA, SuperWeight
from tests.naming import naming
from tests.orchestrator.forensics.untrained import model, spec, write


def test_result_is_plain_json_and_repeats_itself(checkpoint: Callable[..., Any]) -> None:
    path = checkpoint().write()
    first, second = (json.dumps(analyze(path).to_json(), allow_nan=False) for _ in range(2))
    assert first == second
    result = json.loads(first)
    assert list(result) == [
        "schema", "definitions", "source", "family", "assumed", "step", "scoring", "options", "missing",
        "substitutes", "layers", "totals", "pathology", "matrices", "heads_assumed", "declared",
    ]  # fmt: skip
    assert (result["schema"], result["definitions"]) == (SCHEMA, DEFINITIONS)
    assert (result["step"], result["scoring"]) == (7, "calibrated")
    options = {
        "reference": None, "optimizer": None, "resamples": 10, "seed": 0, "probed": False, "tokens": None,
        "weights": None, "base": None, "gradients": None, "delta": False, "unprobed": None,
    }  # fmt: skip
    assert result["options"] == options
    assert [(layer["layer"], layer["width"]) for layer in result["layers"]] == [(0, 16), (1, 16), (2, 24)]
    for layer in result["layers"]:
        assert layer["role"] == layer["scorings"]["calibrated"]["role"]
        assert layer["role_paper"] == layer["scorings"]["paper"]["role"]
        assert set(layer["scores"]) == {"hub", "damper", "passthrough", "specialist"}


def test_totals_are_sums_over_the_layers(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    ours.tensors[ours.name(1, "gate")][:3] *= 50
    result = analyze(ours.write())
    for key in ("saturated", "saturated_robust", "saturated_expected", "saturated_robust_expected"):
        assert result.totals[key] == sum(layer.measures[key] for layer in result.layers)
    assert result.totals["saturated"] >= 3
    assert result.totals["saturated_fixed"] is None


def test_missing_names_what_no_layer_has(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    missing = analyze(ours.write()).missing
    assert {"saturated_fixed", "copy_density", "sink_mass"} <= set(missing)
    assert not {"total_write", "coupling", "unique_roles"} & set(missing)
    assert not {"momentum_alignment", "stuck_fraction", "effective_rank", "cv"} & set(missing)
    (ours.path / "optimizer.safetensors").unlink()
    result = analyze(ours.path)
    assert {"momentum_alignment", "stuck_fraction"} <= set(result.missing)
    assert result.layers[0].measures["momentum_alignment.down"] is None


def test_pre_norm_stands_in_for_an_absent_post_norm(checkpoint: Callable[..., Any]) -> None:
    assert list(analyze(checkpoint().write()).substitutes) == list(STREAMED)
    result = analyze(checkpoint(norm="pre", path=Path("pre")).write())
    assert list(result.substitutes) == ["gamma_concentration", *STREAMED]
    assert "post_norm_damped_fraction" in result.missing


def test_step_zero_beside_a_checkpoint_is_its_reference(
    checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = checkpoint(path=Path("step_00000007"), seed=1)
    assert analyze(later.write()).totals["saturated_fixed"] is None
    start = checkpoint(path=Path("step_00000000"))
    start.step = 0
    start.write()
    implied, named = analyze(later.path), analyze(later.path, reference=start.path)
    assert implied.options.reference == str(start.path)
    assert implied == named
    assert implied.totals["saturated_fixed"] is not None
    monkeypatch.chdir(later.path)
    assert analyze(".").totals == implied.totals


def test_a_step_zero_that_cannot_be_read_is_no_reference_and_hinders_nothing(checkpoint: Callable[..., Any]) -> None:
    later = checkpoint(path=Path("step_00000007")).write()
    start = checkpoint(path=Path("step_00000000")).write()
    weights = start / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    result = analyze(later)
    assert result.options.reference is None
    assert "saturated_fixed" in result.missing
    with pytest.raises(UserError, match=naming(weights, "complete")):
        analyze(later, reference=start)


def test_a_file_beside_the_directorys_model_is_not_probed_as_if_it_were_that_model(
    checkpoint: Callable[..., Any],
) -> None:
    path = checkpoint().write()
    other = path / "ema.safetensors"
    other.write_bytes((path / "model.safetensors").read_bytes())
    tokens = [[1, 2, 3, 1, 2]]
    assert analyze(path / "model.safetensors", tokens=tokens).options.probed
    assert not analyze(other).options.probed
    with pytest.raises(UserError, match=naming(other, "model.safetensors", "probe")):
        analyze(other, tokens=tokens)


def test_a_checkpoint_of_another_name_has_no_reference_beside_it(checkpoint: Callable[..., Any]) -> None:
    checkpoint(path=Path("step_00000000")).write()
    assert analyze(checkpoint(path=Path("final")).write()).options.reference is None


def test_step_zero_is_its_own_reference(checkpoint: Callable[..., Any]) -> None:
    start = checkpoint(path=Path("step_00000000"))
    start.step = 0
    totals = analyze(start.write()).totals
    assert totals["saturated_fixed"] == totals["saturated"]


def test_expected_counts_depend_on_the_seed_and_on_their_own_layer_only(
    checkpoint: Callable[..., Any],
) -> None:
    ours = checkpoint(ffn=400)
    before = analyze(ours.write()).layers
    assert analyze(ours.path, seed=1).layers[1].measures != before[1].measures
    ours.tensors[ours.name(0, "gate")][:] = 1
    after = analyze(ours.write()).layers
    keys = ("saturated_expected", "saturated_robust_expected")
    assert [after[1].measures[key] for key in keys] == [before[1].measures[key] for key in keys]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scoring": "papr"}, ["scoring=papr", "'paper'?"]),
        ({"resamples": 1}, ["resamples=1", "2"]),
        ({"reference": Path("nowhere")}, ["nowhere", "exist"]),
    ],
)
def test_options_that_cannot_work(checkpoint: Callable[..., Any], options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)):
        analyze(checkpoint().write(), **options)


def test_a_reference_of_another_depth_is_refused(checkpoint: Callable[..., Any]) -> None:
    short, long = checkpoint(widths=(16,), path=Path("short")), checkpoint(path=Path("long"))
    with pytest.raises(UserError, match=naming("short", "1 layers", "long", "3", "reference")):
        analyze(long.write(), reference=short.write())


def test_scorings_share_everything_but_roles(checkpoint: Callable[..., Any]) -> None:
    path = checkpoint().write()
    calibrated, paper = analyze(path), analyze(path, scoring="paper")
    for a, b in zip(calibrated.layers, paper.layers, strict=True):
        assert (a.measures, a.scorings) == (b.measures, b.scorings)
        assert b.role == b.role_paper == a.role_paper


def test_a_super_weight_is_found_where_it_stands_and_noise_has_none(checkpoint: Callable[..., Any]) -> None:
    rng, layers = np.random.default_rng(0), []
    ours = checkpoint(widths=(16,) * 6)
    for _ in range(10):
        drawn = {name: rng.normal(size=w.shape).astype(np.float32) for name, w in ours.tensors.items()}
        ours.tensors = {name: np.abs(w) if "norm" in name else w for name, w in drawn.items()}
        layers += analyze(ours.write()).layers
    found = sum(layer.super_weight is not None for layer in layers)
    assert found <= 4  # by chance one of the 10 models has one
    ours.tensors[ours.name(2, "down")][5, 11] = 60  # alone it is in its own null, which resamples entries
    ours.tensors[ours.name(2, "down")][5, 3] = 61  # of a position that says little
    for kind in ("gate", "up"):
        ours.tensors[ours.name(2, kind)][11] *= 4
    layers = analyze(ours.write()).layers
    assert layers[2].super_weight == SuperWeight(row=5, position=11)
    ours.tensors[ours.name(4, "gate")] *= 1000  # louder draws, too, but of its own
    layers = analyze(ours.write()).layers
    assert layers[2].super_weight == SuperWeight(row=5, position=11)


def test_zero_and_constant_layers_are_read(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    for kind in ("q", "k", "v", "o", "gate", "up", "down"):
        ours.tensors[ours.name(0, kind)][:] = 0
        ours.tensors[ours.name(1, kind)][:] = 0.1
    for name in [name for name in ours.tensors if "layernorm" in name]:
        ours.tensors[name][:] = 0
    json.dumps(analyze(ours.write()).to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "shape",
    [{"heads": 1, "kv_heads": 1}, {"heads": 3, "kv_heads": 1, "head_dim": 1}, {"ffn": 1}, {"widths": (1, 1, 2)}],
)
def test_the_smallest_shapes_are_read(checkpoint: Callable[..., Any], shape: dict[str, Any]) -> None:
    result = analyze(checkpoint(**shape).write())
    json.dumps(result.to_json(), allow_nan=False)
    for measures in (layer.measures for layer in result.layers):
        assert (measures["head_diversity"] is None) == (shape.get("heads") == 1)
        assert measures["head_evenness"] == 1 if shape.get("heads") == 1 else measures["head_evenness"] <= 1
        assert (measures["cv"], measures["saturated_robust"]) == (0, 0) if shape.get("ffn") == 1 else measures["cv"] > 0


def test_a_layer_pruned_to_single_entries_is_read(tmp_path: Path) -> None:
    decoder = model(spec(), 0)
    block = decoder.model.layers[4]
    with torch.no_grad():
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            kept = weight[1, 2].clone()
            weight.zero_()[1, 2] = kept
    result = analyze(write(decoder, tmp_path))
    json.dumps(result.to_json(), allow_nan=False)
    assert "specialist" in result.layers[4].role  # one FFN position writes all that is written


@pytest.mark.parametrize(("few", "kinds"), [(3, 1), (13, 2)])
def test_a_kind_of_positions_is_half_a_percent_of_them(checkpoint: Callable[..., Any], few: int, kinds: int) -> None:
    rng, ours = np.random.default_rng(0), checkpoint(widths=(64,), ffn=2000)
    for name in [ours.name(0, kind) for kind in ("gate", "up", "down")]:
        ours.tensors[name] = rng.normal(size=ours.tensors[name].shape).astype(np.float32)
    ours.tensors[ours.name(0, "gate")][:few] *= 300
    assert analyze(ours.write(), resamples=2).layers[0].measures["unique_roles"] == kinds


def test_one_layer_model(checkpoint: Callable[..., Any]) -> None:
    (layer,) = analyze(checkpoint(widths=(16,)).write()).layers
    assert (layer.role, layer.margin, layer.evidence) == ("none", 0, [])


@pytest.mark.parametrize("scale", [1e-15, 1e13])
def test_scale_of_the_weights_changes_nothing_that_has_no_scale(checkpoint: Callable[..., Any], scale: float) -> None:
    ours = checkpoint()
    before = analyze(ours.write()).layers
    for name, tensor in ours.tensors.items():
        if tensor.ndim == 2:
            ours.tensors[name] = tensor * np.float32(scale)
    for a, b in zip(before, analyze(ours.write()).layers, strict=True):
        for key in ("cv", "effective_rank.o", "sink_mean", "coupling", "attention_share", "super_weight_ratio"):
            assert b.measures[key] == pytest.approx(a.measures[key], rel=1e-4), key


def test_weights_that_fp32_cannot_square_are_refused(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    ours.tensors[ours.name(1, "down")] *= np.float32(1e19)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.weight .*\de\+1[789]\b"):
        analyze(ours.write())


def test_weights_that_fp32_cannot_square_behind_their_norm_are_refused(
    checkpoint: Callable[..., Any],
) -> None:
    ours = checkpoint()
    ours.tensors[ours.name(1, "up")] *= np.float32(1e12)
    ours.tensors["model.layers.1.pre_feedforward_layernorm.weight"] *= np.float32(1e12)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight .*\de\+2[3-5]\b"):
        analyze(ours.write())
