"""Layouts inferred from names and shapes agree with the table, and every assumption is stated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.kinds import KINDS, PLACES
from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.architecture.live import live
from orchestrator.forensics.architecture.model import CheckpointModel
from tests.naming import names, naming

# Wide enough for real heads of 64, the size assumed where nothing tells it.
COMMON = {
    "vocab_size": 48, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SIZES = COMMON | {"num_key_value_heads": 1, "head_dim": 64}

CASES: dict[str, dict[str, Any]] = {
    "llama": SIZES, "qwen2": SIZES, "qwen3": SIZES, "gemma2": SIZES, "gemma3_text": SIZES, "gemma": SIZES,
    "olmo": SIZES, "olmo2": SIZES, "cohere": SIZES, "glm4": SIZES, "phi": SIZES, "phi3": SIZES, "starcoder2": SIZES,
    "apertus": SIZES, "gpt2": COMMON, "gpt_neox": COMMON, "gptj": COMMON | {"rotary_dim": 32},
    "mpt": COMMON, "bloom": COMMON, "falcon": COMMON, "opt": COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 128},
    "bert": COMMON, "roberta": COMMON, "modernbert": COMMON,
    "distilbert": COMMON | {"dim": 128, "hidden_dim": 96, "n_layers": 3, "n_heads": 2},
}  # fmt: skip
AMBIGUOUS = {"bloom", "falcon"}  # ChatGLM's fused matrix has the same name, and another order
BY_HEADS = {"gpt_neox", "phi3"}  # fused matrices whose rows cannot be told apart without the heads
NORMED = {"qwen3", "gemma3_text", "apertus"}  # a norm of each head tells its size
ENCODERS = {"bert", "roberta", "distilbert", "modernbert"}


def _save(mark: str, path: Path) -> None:
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if mark in ENCODERS else AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model(mark, **CASES[mark]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)


def _compare(guessed: CheckpointModel, known: CheckpointModel, heads: bool = True) -> None:
    assert guessed.family_name == "inferred"
    assert guessed.embedding_shape == known.embedding_shape
    assert torch.equal(torch.cat(list(guessed.embedding())), torch.cat(list(known.embedding())))
    for ours, truth in zip(guessed, known, strict=True):
        assert (ours.kinds, ours.width) == (truth.kinds, truth.width)
        assert ours.heads == (truth.heads if heads else None)
        for kind in truth.kinds:
            assert torch.equal(ours.weight(kind), truth.weight(kind)), kind
        for place in PLACES:
            gamma, expected = ours.norm(place), truth.norm(place)
            assert (gamma is None) == (expected is None), place
            assert gamma is None or torch.equal(gamma, expected), place


@pytest.mark.parametrize("mark", CASES)
def test_without_the_table(tmp_path: Path, mark: str) -> None:
    _save(mark, tmp_path)
    known = CheckpointModel(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mystery"}))
    if mark in AMBIGUOUS:
        with pytest.raises(
            UserError, match=naming("self_attention.query_key_value.weight", "order", "bloom", "chatglm2")
        ):
            CheckpointModel(tmp_path)
        return
    declared = CheckpointModel(tmp_path)
    assert names(declared.assumed[0], "family", "mystery")
    assert not declared.heads_assumed
    _compare(declared, known)

    (tmp_path / "config.json").unlink()
    if mark in BY_HEADS:
        with pytest.raises(UserError, match=naming("number of heads", "config.json")):
            CheckpointModel(tmp_path)
        return
    bare = CheckpointModel(tmp_path)
    assert names(bare.assumed[0], "No family")
    if mark in NORMED:
        assert [said for said in bare.heads_assumed if names(said, "heads", "64")]
    else:
        assert [said for said in bare.heads_assumed if names(said, "heads", "num_attention_heads", "config.json")]
    _compare(bare, known, heads=mark in NORMED)


def test_bare_state_dict_of_torch(tmp_path: Path) -> None:
    _save("llama", tmp_path / "known")
    (tmp_path / "bare").mkdir()
    torch.save({"model": load_file(tmp_path / "known/model.safetensors")}, tmp_path / "bare/step.pt")
    _compare(CheckpointModel(tmp_path / "bare/step.pt"), CheckpointModel(tmp_path / "known"), heads=False)


META = {
    "model.embed_tokens": "tok_embeddings", "model.layers": "layers", "self_attn": "attention", "q_proj": "wq",
    "k_proj": "wk", "v_proj": "wv", "o_proj": "wo", "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm", "lm_head": "output",
}  # fmt: skip
PLAIN = {
    "model.embed_tokens": "embedding", "model.layers": "blocks", "self_attn": "att", "q_proj": "query",
    "k_proj": "key", "v_proj": "value", "self_attn.o_proj": "att.out", "mlp.gate_proj": "ff.gate",
    "mlp.down_proj": "ff.down", "mlp.up_proj": "ff.up", "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2", "lm_head": "unembed_head",
}  # fmt: skip
# xformers' SwiGLU: w3 closes it, where in Llama's w2 does
TWISTED = META | {"mlp.gate_proj": "mlp.w1", "mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"}


def _rename(path: Path, words: dict[str, str], change: Callable[[str, Any], Any] = lambda name, value: value) -> None:
    tensors = load_file(path / "model.safetensors")
    renamed = {}
    for name, value in tensors.items():
        for old in sorted(words, key=len, reverse=True):
            name = name.replace(old, words[old])
        renamed[name] = change(name, value).contiguous()
    save_file(renamed, path / "model.safetensors")


@pytest.mark.parametrize("words", [PLAIN, TWISTED])
def test_renamed_tensors(tmp_path: Path, words: dict[str, str]) -> None:
    _save("llama", tmp_path / "known")
    _save("llama", tmp_path / "renamed")
    (tmp_path / "renamed/config.json").unlink()
    _rename(tmp_path / "renamed", words)
    _compare(CheckpointModel(tmp_path / "renamed"), CheckpointModel(tmp_path / "known"), heads=False)


def test_matrices_that_lie_the_other_way(tmp_path: Path) -> None:
    _save("llama", tmp_path / "known")
    _save("llama", tmp_path / "transposed")
    (tmp_path / "transposed/config.json").unlink()
    _rename(tmp_path / "transposed", {}, lambda name, value: value.T if "layers" in name and value.ndim == 2 else value)
    transposed = CheckpointModel(tmp_path / "transposed")
    assert [said for said in transposed.assumed if "[in, out]" in said]
    _compare(transposed, CheckpointModel(tmp_path / "known"), heads=False)


def test_what_is_assumed_is_said(tmp_path: Path) -> None:
    _save("gpt_neox", tmp_path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2, "hidden_size": 128}')
    assumed = CheckpointModel(tmp_path).assumed
    assert any(names(said, "attention.query_key_value.weight", "gpt_neox") for said in assumed)
    assert any("pre_ffn: post_attention_layernorm.weight" in said for said in assumed)
    _save("gemma2", tmp_path / "gemma")
    (tmp_path / "gemma/config.json").unlink()
    assert any(names(said, "Norm scales", "1") for said in CheckpointModel(tmp_path / "gemma").assumed)


def test_unknown_heads_stay_unknown(tmp_path: Path) -> None:
    tensors = {"embed.weight": torch.randn(40, 24)}
    for index in range(2):
        shapes = {"q": (24, 24), "k": (24, 24), "v": (24, 24), "o": (24, 24)}
        tensors |= {f"layers.{index}.attn.{kind}.weight": torch.randn(shape) for kind, shape in shapes.items()}
        tensors |= {f"layers.{index}.mlp.fc1.weight": torch.randn(40, 24)}
        tensors |= {f"layers.{index}.mlp.fc2.weight": torch.randn(24, 40), f"layers.{index}.odd": torch.randn(3, 3)}
    save_file(tensors, tmp_path / "model.safetensors")
    opened = CheckpointModel(tmp_path)
    assert [layer.heads for layer in opened] == [None, None]
    assert opened.layer(1).kinds == tuple(kind for kind in KINDS if kind != "gate")
    assert [said for said in opened.assumed if names(said, "odd")]
    assert [said for said in opened.heads_assumed if names(said, "heads", "num_attention_heads")]
    (tmp_path / "config.json").write_text('{"n_heads": 4, "dim": 24}')
    assert CheckpointModel(tmp_path).layer(0).heads == Heads(4, 4, 6)


@pytest.mark.parametrize("kv", [4, 2])
def test_the_number_of_heads_is_enough(tmp_path: Path, kv: int) -> None:
    tensors = {}
    for index in range(2):
        shapes = {"q": (24, 24), "k": (6 * kv, 24), "v": (6 * kv, 24), "o": (24, 24)}
        tensors |= {f"layers.{index}.attn.{kind}.weight": torch.randn(shape) for kind, shape in shapes.items()}
        tensors |= {f"layers.{index}.mlp.fc1.weight": torch.randn(40, 24)}
        tensors |= {f"layers.{index}.mlp.fc2.weight": torch.randn(24, 40)}
    save_file(tensors, tmp_path / "model.safetensors")
    (said,) = CheckpointModel(tmp_path).heads_assumed
    assert names(said, "beside")
    assert not names(said, "config=")
    (said,) = CheckpointModel(live(tensors)).heads_assumed
    assert names(said, "config={'num_attention_heads'")
    for config in ({"num_attention_heads": 4}, {"num_attention_heads": 4, "num_key_value_heads": kv}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        for model in (CheckpointModel(tmp_path), CheckpointModel(live(tensors, config))):
            assert [layer.heads for layer in model] == [Heads(4, kv, 6)] * 2
            assert not model.heads_assumed
    (tmp_path / "config.json").write_text('{"num_attention_heads": 5}')
    with pytest.raises(UserError, match=naming("24", "5")):
        CheckpointModel(tmp_path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4, "num_key_value_heads": 3}')
    with pytest.raises(UserError, match=naming("4", "3")):
        CheckpointModel(tmp_path)


def _convnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Linear(8, 4))


def _torch_encoder() -> nn.Module:
    return nn.ModuleDict({"a": nn.ModuleList([nn.Linear(4, 4)]), "out": nn.Linear(4, 4)})


@pytest.mark.parametrize("model", [_convnet, _torch_encoder])
def test_what_is_no_transformer_is_refused(tmp_path: Path, model: Callable[[], nn.Module]) -> None:
    state = {name: value for name, value in model().state_dict().items() if value.is_floating_point()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=naming(tmp_path, "q, k, v, o", "up", "down", "config.json")):
        CheckpointModel(tmp_path)


def test_layers_of_different_widths(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 24, 32), head_dim=64, heads=2, kv_heads=1, path=Path("known")).write()
    known = CheckpointModel(ours)
    (ours / "state.json").rename(ours / "aside.json")
    _compare(CheckpointModel(ours), known, heads=False)


@pytest.mark.parametrize("shape", [(128,), (0, 128), (128, 128, 1)])
def test_a_later_layer_that_is_broken(tmp_path: Path, shape: tuple[int, ...]) -> None:
    _save("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.self_attn.o_proj.weight"] = torch.ones(shape)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=naming("model.layers.2.self_attn.o_proj.weight", shape)):
        CheckpointModel(tmp_path)


def test_two_candidates_are_refused(tmp_path: Path) -> None:
    _save("llama", tmp_path)
    _rename(tmp_path, {"mlp.gate_proj": "mlp.fc1"})
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=naming("up", "mlp.fc1.weight", "mlp.up_proj.weight")):
        CheckpointModel(tmp_path)


def test_two_stacks_are_refused(tmp_path: Path) -> None:
    _save("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {f"twin.{name}": v.clone() for name, v in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=naming("stacks", "model.layers.N", "twin.model.layers.N")):
        CheckpointModel(tmp_path)


def test_matrices_without_a_common_width_are_refused(tmp_path: Path) -> None:
    _save("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight"] = torch.randn(5, 7)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=naming("width", "model_type")):
        CheckpointModel(tmp_path)


def test_a_fused_matrix_of_unknown_row_order_is_refused(tmp_path: Path) -> None:
    _save("gpt_neox", tmp_path)
    _rename(tmp_path, {"query_key_value": "my_qkv"})
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2, "hidden_size": 128}')
    with pytest.raises(UserError, match=naming("attention.my_qkv.weight", "order", "model_type")):
        CheckpointModel(tmp_path)


def test_norms_that_do_not_say_where_they_are(tmp_path: Path) -> None:
    _save("gpt2", tmp_path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2, "hidden_size": 128}')
    assert CheckpointModel(tmp_path).layer(0).norm("pre_ffn") is not None  # a norm follows the last layer
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: v for name, v in tensors.items() if ".ln_f." not in name}, tmp_path / "model.safetensors")
    opened = CheckpointModel(tmp_path)
    assert [opened.layer(0).norm(place) for place in PLACES] == [None] * 4
    assert any(names(said, "ln_1.weight", "ln_2.weight", "precede") for said in opened.assumed)
