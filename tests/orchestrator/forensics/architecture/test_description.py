"""The weights and what is said of them must belong together; where they do not, the difference is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.architecture.model import CheckpointModel
from tests.naming import names, naming

SIZES = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def _llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def _gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=3, n_head=4, vocab_size=64, n_positions=16))


def _rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_text_config_that_leaves_heads_to_defaults(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **SIZES))
    model.save_pretrained(tmp_path)
    text = {"model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": 24}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    opened = CheckpointModel(tmp_path)
    assert opened.layer(1).heads == Heads(4, 2, 8)  # head_dim from the norm of queries
    (assumed,) = opened.heads_assumed
    assert names(assumed, "heads", "8")


def test_heads_that_differ_between_layers(tmp_path: Path) -> None:
    model = _llama()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for kind in "kv":
        name = f"model.layers.1.self_attn.{kind}_proj.weight"
        tensors[name] = tensors[name].repeat(2, 1)
    save_file(tensors, tmp_path / "model.safetensors")
    _rewrite(tmp_path / "config.json", num_key_value_heads=[2, 4, 2])
    assert [layer.heads.kv_heads for layer in CheckpointModel(tmp_path)] == [2, 4, 2]


@pytest.mark.parametrize(
    ("mark", "named"),
    [
        ("gemma2", ["6 of the 33 tensors", "model.layers.0.pre_feedforward_layernorm.weight"]),
        ("gpt2", ["18 tensors", "3 layers", "another family", "config.json"]),
        ("olmo", ["model.layers.0.input_layernorm.weight"]),
        ("olmo2", ["3 of the 27 tensors", "3 layers"]),
    ],
)
def test_a_wrong_model_type_is_found_out(tmp_path: Path, mark: str, named: list[str]) -> None:
    _llama().save_pretrained(tmp_path)
    _rewrite(tmp_path / "config.json", model_type=mark)
    with pytest.raises(UserError, match=naming(tmp_path, f"family {mark}", *named)):
        CheckpointModel(tmp_path)


def test_four_norms_are_not_taken_for_two(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **SIZES)).save_pretrained(tmp_path)
    _rewrite(tmp_path / "config.json", model_type="llama")
    with pytest.raises(UserError, match=r"post_feedforward_layernorm\.weight\b.*family llama\b"):
        CheckpointModel(tmp_path)


def test_absent_tensors_are_named(tmp_path: Path) -> None:
    _llama().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.gate_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError,
        match=naming("1 of the 27 tensors", "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"),
    ):
        CheckpointModel(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 2}, ["model.layers.2.input_layernorm.weight", "2 layers"]),
        ({"num_hidden_layers": 4}, ["0 to 2", "config.json", "4"]),
        ({"num_hidden_layers": 0}, ["0 layers"]),
        ({"head_dim": 4}, ["q_proj.weight", "(32, 24)", "(16, 24)"]),
        ({"num_key_value_heads": 3}, ["4 heads", "3 key/value heads", "layer 0"]),
        ({"num_key_value_heads": 0}, ["4 heads", "0 key/value heads", "layer 0"]),
        ({"num_hidden_layers": 10**12}, ["config.json", "1000000000000 layers"]),
        ({"num_attention_heads": 0, "head_dim": None}, ["config.json", "ZeroDivisionError"]),
        ({"num_attention_heads": [4, 4]}, ["config.json", "IndexError"]),
        ({"num_attention_heads": "many"}, ["config.json", "'many'"]),
        ({"num_attention_heads": float("inf")}, ["config.json", "infinity"]),
        ({"num_hidden_layers": float("inf")}, ["config.json", "infinity"]),
        ({"num_attention_heads": 10**30}, ["config.json", f"{10**30} heads"]),
        ({"head_dim": 10**30}, ["config.json", f"heads of {10**30}"]),
        ({"model_type": "a\x1b[31m"}, ["config.json", "model_type"]),
    ],
)
def test_description_that_does_not_fit(tmp_path: Path, changes: dict[str, object], named: list[str]) -> None:
    _llama().save_pretrained(tmp_path)
    _rewrite(tmp_path / "config.json", **changes)
    with pytest.raises(UserError, match=naming(*named)):
        CheckpointModel(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("self_attn.q_proj", (32,)),
        ("mlp.up_proj", (40, 24, 1)),
        ("mlp.down_proj", (24, 39)),
        ("input_layernorm", (23,)),
    ],
)
def test_misshapen_tensors_are_named(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    _llama().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"model.layers.2.{name}.weight"] = torch.ones(shape)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=naming(f"model.layers.2.{name}.weight", shape)):
        CheckpointModel(tmp_path)


def test_heads_that_are_no_number_where_layers_are_not_declared(tmp_path: Path) -> None:
    _llama().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": "many"}))
    with pytest.raises(UserError, match=naming("config.json", "many")):
        CheckpointModel(tmp_path)


def test_a_fused_tensor_that_holds_no_such_heads(tmp_path: Path) -> None:
    _gpt2().save_pretrained(tmp_path)
    _rewrite(tmp_path / "config.json", n_head=4, num_key_value_heads=2)
    with pytest.raises(UserError, match=naming("c_attn.weight", "(24, 72)", "q, k, v", "4 heads")):
        CheckpointModel(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"spec": {}, "step": 1}', "[" * 100_000])
def test_state_that_cannot_be_read(checkpoint: Callable[..., Any], text: str) -> None:
    path = checkpoint().write()
    (path / "state.json").write_text(text)
    with pytest.raises(UserError, match=naming(path / "state.json", "decoder")):
        CheckpointModel(path)


@pytest.mark.parametrize("trace", [[1.0], {"a": 3}, {"a": ["many"]}, "none"])
def test_a_trace_that_is_none(checkpoint: Callable[..., Any], trace: Any) -> None:
    ours = checkpoint()
    ours.trace = trace
    with pytest.raises(UserError, match=naming("state.json", "decoder")):
        CheckpointModel(ours.write())


@pytest.mark.parametrize(("stored", "declared"), [("llama", "gemma"), ("gemma", "llama")])
def test_norm_scales_that_contradict_the_declared_family(tmp_path: Path, stored: str, declared: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(stored, **SIZES))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    CheckpointModel(tmp_path)
    _rewrite(tmp_path / "config.json", model_type=declared)
    with pytest.raises(
        UserError,
        match=naming(tmp_path, declared, "norm scales", "model.layers.0.input_layernorm.weight", "config.json"),
    ):
        CheckpointModel(tmp_path)


def test_untrained_scales_contradict_nothing(tmp_path: Path) -> None:
    for mark in ("gemma", "gemma2", "nemotron", "llama"):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(mark, **SIZES)).save_pretrained(tmp_path / mark)
        CheckpointModel(tmp_path / mark)


def test_experts_that_are_declared_but_not_there(tmp_path: Path) -> None:
    _llama().save_pretrained(tmp_path)
    _rewrite(tmp_path / "config.json", n_routed_experts=8, num_experts=8)
    assert len(CheckpointModel(tmp_path)) == 3


@pytest.mark.parametrize("name", ["state.json", "params.json"])
def test_a_file_of_that_name_from_elsewhere_describes_nothing(name: str, tmp_path: Path) -> None:
    _llama().save_pretrained(tmp_path)
    (tmp_path / name).write_text('{"epoch": 3}')
    assert CheckpointModel(tmp_path).layer(1).heads == Heads(4, 2, 8)
    (tmp_path / "config.json").unlink()
    assert CheckpointModel(tmp_path).heads_assumed
