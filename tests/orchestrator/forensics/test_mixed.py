"""Hybrids and mixtures of experts: what a layer lacks is absent, and the rest is what its own matrices give."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.common.errors import UserError
from orchestrator.forensics.__main__ import main
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.kinds import FFN
from orchestrator.forensics.reading import Reading, rows_of
from orchestrator.forensics.render import figure
from orchestrator.forensics.render.terminal import report
from orchestrator.forensics.render.trajectory import report as trajectory_report
from orchestrator.forensics.render.trajectory import trajectory
from tests.naming import names, naming
from tests.orchestrator.forensics.architecture.zoo.tiny import build
from tests.orchestrator.forensics.pages import entry, printed

HOLDS = {
    "jamba": [["state-space", "FFN"], ["state-space", "4 experts"], ["state-space", "FFN"]],
    "nemotron_h": [["state-space"], ["4 experts + shared"], ["attention"], ["FFN"]],
    "qwen3_next": [[mixer, "4 experts + shared"] for mixer in ("linear attention", "attention", "linear attention")],
    "glm4_moe_lite": [["latent attention", ffn] for ffn in ("FFN", "4 experts + shared", "4 experts + shared")],
    "lfm2_moe": [["convolution", "FFN"], ["attention", "FFN"], ["convolution", "4 experts"]],
    "mixtral": [["attention", "4 experts"]] * 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def _saved(mark: str, directory: Path, **keys: Any) -> Any:
    model = build(mark, **keys)
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("mark", HOLDS)
def test_a_layer_lacks_the_measures_of_what_it_does_not_hold(tmp_path: Path, mark: str) -> None:
    _saved(mark, tmp_path)
    reading = analyze(tmp_path)
    assert [layer.holds for layer in reading.layers] == HOLDS[mark]
    for layer in reading.layers:
        has = {key for key, value in layer.measures.items() if value is not None}
        attends, feeds = "attention" in layer.holds, "FFN" in layer.holds
        assert {"head_evenness", "spectral_norm.q", "effective_rank.o", "max_abs.v"} & has == (
            {"head_evenness", "spectral_norm.q", "effective_rank.o", "max_abs.v"} if attends else set()
        )
        assert {"cv", "saturated", "spectral_norm.down", "unique_roles"} <= has if feeds else "cv" not in has
        assert ("attention_share" in has) == (attends and feeds)
        assert (layer.scores["hub"] is not None) <= attends
        assert (layer.scores["specialist"] is not None) <= feeds
        assert (layer.super_weight is None) or feeds
    json.dumps(reading.to_json(), allow_nan=False)
    assert Reading.from_json(json.loads(json.dumps(reading.to_json()))) == reading


def test_the_values_of_attention_are_those_of_the_same_attention_beside_an_ffn(tmp_path: Path) -> None:
    _saved("qwen3_moe", tmp_path / "mixture", num_hidden_layers=5)
    tensors = load_file(tmp_path / "mixture/model.safetensors")
    rng = torch.Generator().manual_seed(1)
    dense = {name: value for name, value in tensors.items() if ".mlp." not in name}
    for layer in range(5):
        for name, shape in {"gate": (40, 32), "up": (40, 32), "down": (32, 40)}.items():
            dense[f"model.layers.{layer}.mlp.{name}_proj.weight"] = torch.randn(shape, generator=rng)
    (tmp_path / "dense").mkdir()
    save_file(dense, tmp_path / "dense/model.safetensors")
    config = json.loads((tmp_path / "mixture/config.json").read_text())
    (tmp_path / "dense/config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    mixed, whole = (analyze(tmp_path / name) for name in ("mixture", "dense"))
    for a, b in zip(mixed.layers, whole.layers, strict=True):
        for key, value in a.measures.items():
            if value is not None and not key.startswith(("so", "si", "sy", "composition", "max_abs")):
                assert value == pytest.approx(b.measures[key], rel=1e-5), key


def test_a_layers_peers_are_those_of_its_kind(tmp_path: Path) -> None:
    kinds = ["linear_attention", "full_attention"] * 6
    _saved("qwen3_5_text", tmp_path, num_hidden_layers=12, layer_types=kinds)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(12):  # attention reads what the layers before it write along one axis; FFNs do so nowhere
        if layer % 2:
            for name in ("q_proj", "k_proj", "v_proj"):
                tensors[f"model.layers.{layer}.self_attn.{name}.weight"][:, 0] += 4.0
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"][0] += 1.0
    save_file(tensors, tmp_path / "model.safetensors")
    reading = analyze(tmp_path)
    sinks = np.array([layer.measures["sink_mean"] for layer in reading.layers])
    assert sinks[1::2].min() > 1.2 * sinks[2::2].max()  # the kinds differ
    assert [layer.role for layer in reading.layers] == ["none"] * 12  # and no layer differs from its kind


@pytest.mark.parametrize("mark", ["jamba", "mixtral", "nemotron_h"])
def test_every_output_is_written(tmp_path: Path, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    _saved(mark, tmp_path / "a")
    _saved(mark, tmp_path / "b")
    files = [str(tmp_path / f"out.{end}") for end in ("json", "csv", "png")]
    assert main([str(tmp_path / "a"), "--json", files[0], "--csv", files[1], "--figure", files[2]]) == 0
    page = capsys.readouterr().out
    for holds in HOLDS[mark]:
        assert ", ".join(holds) in page
    assert "nan" not in page
    assert not names(page, "needs weights")
    experts = [4 + ("shared" in part) for holds in HOLDS[mark] for part in holds if "experts" in part]
    assert len(Path(files[1]).read_text().splitlines()) == 1 + len(HOLDS[mark]) + sum(experts)
    assert main([str(tmp_path / "a"), "--against", str(tmp_path / "b"), "--figure", files[2]]) == 0
    assert ", ".join(HOLDS[mark][0]) in capsys.readouterr().out


def test_an_older_reading_says_nothing_of_what_its_layers_hold(tmp_path: Path) -> None:
    _saved("qwen3", tmp_path)
    document = analyze(tmp_path).to_json()
    assert rows_of(Reading.from_json(document))[0]["holds"] == "attention, FFN"
    for layer in document["layers"]:
        del layer["holds"]
    assert rows_of(Reading.from_json(document))[0]["holds"] == ""


@pytest.mark.parametrize(
    ("mark", "lost"),
    [
        ("mixtral", "model.layers.1.self_attn.k_proj.weight"),
        ("jamba", "model.layers.2.feed_forward.down_proj.weight"),
        ("qwen3_next", "model.layers.1.self_attn.o_proj.weight"),
    ],
)
def test_a_branch_that_is_not_whole_is_refused(tmp_path: Path, mark: str, lost: str) -> None:
    _saved(mark, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=naming("lacks 1", lost)):
        analyze(tmp_path)


def test_a_branch_without_anything_in_its_place_is_refused(tmp_path: Path) -> None:
    _saved("glm4_moe", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not any(f"layers.0.mlp.{kind}" in name for kind in FFN)}
    assert len(kept) == len(tensors) - 3
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=naming("lacks 3", "model.layers.0.mlp.gate_proj.weight")):
        analyze(tmp_path)


@pytest.mark.parametrize("mark", ["qwen3_next", "lfm2_moe", "mixtral"])
def test_what_tokens_show_stands_at_the_layer_that_shows_it(mark: str) -> None:
    model = build(mark)
    tokens = torch.randint(3, 40, (3, 12), generator=torch.Generator().manual_seed(0))
    forwards, backwards = analyze(model, tokens=tokens), analyze(model, gradients=tokens)
    with torch.no_grad():
        patterns = iter(model(input_ids=tokens, output_attentions=True).attentions)
    for layer, traced in zip(forwards.layers, backwards.layers, strict=True):
        attends, feeds = "attention" in layer.holds, "FFN" in layer.holds
        assert layer.measures["total_write"] is not None
        assert (traced.measures["gradient_alignment.o"] is not None) == attends
        assert (traced.measures["gradient_alignment.down"] is not None) == feeds
        sink = next(patterns)[:, :, 1:, 0].double().mean().item() if attends else None
        assert layer.measures["sink_mass"] == (sink if sink is None else pytest.approx(sink, rel=1e-5))
    assert next(patterns, None) is None


def test_matrices_of_zeros_give_no_wrong_reason() -> None:
    model: Any = build("qwen3", num_hidden_layers=5)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    lines = printed(report(analyze(model), 1.0, 1))
    missing = entry(lines, "missing")
    assert not names(missing, "needs weights")
    assert not names(missing, "number of heads")
    assert "gain cv" in missing.partition(": needs matrices that are not all zeros")[0]
    assert "coupling" in missing.partition(": needs heads that read and write")[0]


@pytest.mark.parametrize(("mark", "strips", "below"), [("mixtral", 2, 1), ("jamba", 2, 3), ("glm4_moe_lite", 2, 3)])
def test_a_run_shows_what_its_layers_have(tmp_path: Path, mark: str, strips: int, below: int) -> None:
    _saved(mark, tmp_path)
    run = trajectory("run", [replace(analyze(tmp_path), step=step) for step in (0, 10)])
    lines = printed(trajectory_report(run, 1.0))
    assert not any("0.000" in line for line in lines)  # an absent spread is a dash, not zero
    drawn = [axes for axes in figure.trajectory(run).get_axes() if axes.get_title("left") or axes.get_title()]
    assert len(drawn) == strips + below
    assert all(axes.has_data() for axes in drawn)
