"""Every tensor is found under its kind, in our checkpoints and in those that transformers writes."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from models.hf import to_huggingface
from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder
from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.weights.tensors import Tensors
from tests.naming import naming

SIZES = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def _llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


def _gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=3, n_head=4, vocab_size=64, n_positions=16))


def test_llama_of_transformers(tmp_path: Path) -> None:
    model = _llama()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    opened = CheckpointModel(tmp_path)
    assert (opened.family_name, len(opened), opened.description.step) == ("llama", 3, None)
    assert opened.description.layers == [Heads(4, 2, 8)] * 3
    for layer, block in zip(opened, model.model.layers, strict=True):
        attention, mlp = block.self_attn, block.mlp
        modules = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        modules += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        for kind, module in zip(KINDS, modules, strict=True):
            assert layer.weight(kind).dtype == torch.float32
            assert torch.equal(layer.weight(kind), module.weight)
            assert layer.moment(kind, "exp_avg") is None
        assert (layer.heads, layer.width, layer.kinds) == (Heads(4, 2, 8), 24, KINDS)
        assert layer.parameters == sum(module.weight.numel() for module in modules)
        assert layer.name("q") == f"model.layers.{layer.index}.self_attn.q_proj.weight"


def test_the_file_itself(tmp_path: Path) -> None:
    _llama(tied=True).save_pretrained(tmp_path)
    opened = CheckpointModel(tmp_path / "model.safetensors")
    assert len(opened) == 3


def test_our_checkpoint_with_sandwich_norms(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 24))
    ours.trace = {ours.name(1, "down"): [0.25, 0.5]}
    opened = CheckpointModel(ours.write())
    assert (opened.family_name, opened.description.step, opened.assumed) == ("llama_sandwich", 7, [])
    assert opened.embedding_shape == (32, 24)
    places = {
        "pre_attention": "input_layernorm", "post_attention": "post_attention_layernorm",
        "pre_ffn": "pre_feedforward_layernorm", "post_ffn": "post_feedforward_layernorm",
    }  # fmt: skip
    for layer in opened:
        assert layer.width == (16, 24)[layer.index]
        for kind in KINDS:
            np.testing.assert_array_equal(layer.weight(kind), ours.weight(layer.index, kind))
            for which in ("exp_avg", "exp_avg_sq"):
                expected = ours.moments[f"{ours.name(layer.index, kind)}.{which}"]
                np.testing.assert_array_equal(layer.moment(kind, which), expected)
        for place, name in places.items():
            np.testing.assert_array_equal(layer.norm(place), ours.tensors[f"model.layers.{layer.index}.{name}.weight"])
    assert [layer.trace("down") for layer in opened] == [[], [0.25, 0.5]]


def test_our_decoder_as_transformers_saves_it(tmp_path: Path) -> None:
    spec = DecoderSpec((LayerShape(16, 4, 2, 6, 40), LayerShape(24, 4, 2, 6, 40)), vocab_size=32)
    decoder = Decoder(spec)
    to_huggingface(decoder).save_pretrained(tmp_path)
    opened = CheckpointModel(tmp_path)
    assert opened.family_name == "llama_sandwich"
    for layer, block in zip(opened, decoder.model.layers, strict=True):
        assert torch.equal(layer.weight("o"), block.self_attn.o_proj.weight)


@pytest.mark.parametrize("stem", ["transformer.", "", "base_model.model.transformer."])
def test_names_with_and_without_a_stem(tmp_path: Path, stem: str) -> None:
    model = _gpt2()
    model.save_pretrained(tmp_path)
    tensors = {stem + name: value.clone() for name, value in model.transformer.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    opened = CheckpointModel(tmp_path)
    block = model.transformer.h[2].attn.c_attn.weight.T  # [3d, d]
    for kind, rows in zip("qkv", block.split(24), strict=True):
        assert torch.equal(opened.layer(2).weight(kind), rows)
        assert opened.layer(2).name(kind) == f"{stem}h.2.attn.c_attn.weight[{kind}]"
    assert opened.embedding_shape == (64, 24)


def test_moments_of_fused_and_turned_tensors_are_cut_like_the_weights(tmp_path: Path) -> None:
    model = _gpt2()
    model.save_pretrained(tmp_path)
    doubled = {f"{name}.exp_avg": 2 * value for name, value in model.state_dict().items() if "lm_head" not in name}
    save_file(doubled, tmp_path / "moments.safetensors")
    assert CheckpointModel(tmp_path).layer(0).moment("q", "exp_avg") is None
    opened = CheckpointModel(tmp_path, optimizer=tmp_path / "moments.safetensors")
    for layer in opened:
        for kind in layer.kinds:
            moment = layer.moment(kind, "exp_avg")
            assert moment is not None
            assert torch.equal(moment, 2 * layer.weight(kind))


def test_text_model_within_a_multimodal_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 9, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=SIZES, vision_config=vision))
    model.save_pretrained(tmp_path)
    opened = CheckpointModel(tmp_path)
    assert (opened.family_name, len(opened), opened.embedding_shape) == ("gemma3", 3, (64, 24))
    for layer, block in zip(opened, model.model.language_model.layers, strict=True):
        assert torch.equal(layer.weight("k"), block.self_attn.k_proj.weight)
        assert torch.equal(layer.norm("post_ffn"), torch.ones(24))


def test_an_embedding_outside_the_stream_is_absent(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    config = AutoConfig.for_model("opt", **sizes, word_embed_proj_dim=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    opened = CheckpointModel(tmp_path)
    assert opened.embedding_shape is None
    assert list(opened.embedding()) == []


def test_scales_that_are_called_gamma(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertModel(BertConfig(**sizes, vocab_size=64))
    model.save_pretrained(tmp_path)
    state = {name: torch.rand_like(value) + 0.5 for name, value in load_file(tmp_path / "model.safetensors").items()}
    respell = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {re.sub(r"LayerNorm\.\w+", lambda m: respell[m[0]], f"bert.{name}"): v for name, v in state.items()}
    save_file(old, tmp_path / "model.safetensors")
    for described in (True, False):
        opened = CheckpointModel(tmp_path)
        assert opened.family_name == ("bert" if described else "inferred")
        for layer in opened:
            stem = f"encoder.layer.{layer.index}"
            for place, name in {"post_attention": "attention.output", "post_ffn": "output"}.items():
                assert torch.equal(layer.norm(place), state[f"{stem}.{name}.LayerNorm.weight"])
        (tmp_path / "config.json").unlink(missing_ok=True)


def test_moments_of_another_run(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    ours.moments[f"{ours.name(0, 'q')}.exp_avg"] = np.ones((3, 3), dtype=np.float32)
    with pytest.raises(UserError, match=naming(f"{ours.name(0, 'q')}.exp_avg", (3, 3))):
        next(iter(CheckpointModel(ours.write()))).moment("q", "exp_avg")


@pytest.mark.parametrize("model", [_llama, _gpt2])
def test_one_layer_in_memory_at_a_time(tmp_path: Path, model: Callable[[], Any], monkeypatch: Any) -> None:
    model().save_pretrained(tmp_path)
    live = {"now": 0, "peak": 0}
    read = Tensors.read

    def release(size: int) -> None:
        live["now"] -= size

    def counted(self: Tensors, name: str) -> Tensor:
        values = read(self, name)
        live["now"] += values.nbytes
        live["peak"] = max(live["peak"], live["now"])
        weakref.finalize(values.untyped_storage(), release, values.nbytes)
        return values

    monkeypatch.setattr(Tensors, "read", counted)
    opened = CheckpointModel(tmp_path)
    for layer in opened:
        for kind in layer.kinds * 2:
            assert layer.weight(kind).shape == layer.shape(kind)
    assert live["peak"] == 4 * layer.parameters  # one layer, and a fused tensor once for all its parts
