"""Every tensor is found under its kind, in our checkpoints and in those that transformers writes."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from models.hf import to_huggingface
from models.transformer import Decoder, DecoderSpec, LayerShape
from orchestrator.errors import UserError
from orchestrator.forensics.analysis import analyze
from orchestrator.forensics.anatomy import KINDS, Anatomy
from orchestrator.forensics.tensors import Tensors

SIZES = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def _llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
def test_llama_of_transformers(tmp_path: Path, max_shard_size: str) -> None:
    model = _llama()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "1GB")

    anatomy = Anatomy(tmp_path)
    assert (anatomy.family_name, len(anatomy), anatomy.description.step) == ("llama", 3, None)
    for layer, block in zip(anatomy, model.model.layers, strict=True):
        attention, mlp = block.self_attn, block.mlp
        modules = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        modules += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        for kind, module in zip(KINDS, modules, strict=True):
            np.testing.assert_array_equal(layer.weight(kind), module.weight.detach().double().numpy())
            assert layer.moment(kind, "exp_avg") is None
        assert (layer.heads.heads, layer.heads.kv_heads, layer.heads.head_dim, layer.width) == (4, 2, 8, 24)
        assert layer.norm("post_ffn") is None
        np.testing.assert_array_equal(layer.norm("pre_ffn"), np.ones(24))
    np.testing.assert_array_equal(anatomy.embed(), model.model.embed_tokens.weight.detach().double().numpy())
    head = anatomy.head()
    assert head is not None
    np.testing.assert_array_equal(head, model.lm_head.weight.detach().double().numpy())


def test_tied_head_and_the_file_itself(tmp_path: Path) -> None:
    _llama(tied=True).save_pretrained(tmp_path)
    anatomy = Anatomy(tmp_path / "model.safetensors")
    assert anatomy.head() is None
    assert len(anatomy) == 3


def test_our_checkpoint_with_sandwich_norms(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 24))
    ours.trace = {ours.name(1, "down"): [0.25, 0.5]}
    anatomy = Anatomy(ours.write())
    assert (anatomy.family_name, anatomy.description.step) == ("llama_sandwich", 7)
    places = {
        "pre_attention": "input_layernorm", "post_attention": "post_attention_layernorm",
        "pre_ffn": "pre_feedforward_layernorm", "post_ffn": "post_feedforward_layernorm",
    }  # fmt: skip
    for layer in anatomy:
        assert layer.width == (16, 24)[layer.index]
        for kind in KINDS:
            np.testing.assert_array_equal(layer.weight(kind), ours.weight(layer.index, kind))
            for which in ("exp_avg", "exp_avg_sq"):
                expected = ours.moments[f"{ours.name(layer.index, kind)}.{which}"]
                np.testing.assert_array_equal(layer.moment(kind, which), expected.astype(np.float64))
        for place, name in places.items():
            expected = ours.tensors[f"model.layers.{layer.index}.{name}.weight"]
            np.testing.assert_array_equal(layer.norm(place), expected.astype(np.float64))
    assert [layer.trace("down") for layer in anatomy] == [[], [0.25, 0.5]]


def test_our_decoder_as_transformers_saves_it(tmp_path: Path) -> None:
    spec = DecoderSpec((LayerShape(16, 4, 2, 6, 40), LayerShape(24, 4, 2, 6, 40)), vocab_size=32)
    decoder = Decoder(spec)
    to_huggingface(decoder).save_pretrained(tmp_path)
    anatomy = Anatomy(tmp_path)
    assert anatomy.family_name == "llama_sandwich"
    for layer, block in zip(anatomy, decoder.model.layers, strict=True):
        np.testing.assert_array_equal(layer.weight("o"), block.self_attn.o_proj.weight.detach().double().numpy())


def test_a_family_with_shifted_norms_is_not_taken_for_ours(tmp_path: Path) -> None:
    Gemma2ForCausalLM(Gemma2Config(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="declares model_type=gemma2, a family that is not known here"):
        Anatomy(tmp_path)


def test_absent_tensors_are_named(tmp_path: Path) -> None:
    _llama().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.gate_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 of .*model\.layers\.1\.mlp\.gate_proj\.weight; found lm_head"):
        Anatomy(tmp_path)


def _rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, "its description has 2 layers"),
        ({"num_hidden_layers": 4}, r"lacks 9 of .*model\.layers\.3\."),
        ({"num_hidden_layers": 0}, "a model of 0 layers"),
        ({"head_dim": 4}, r"q_proj\.weight has shape \(32, 24\), not \(16, 24\)"),
        ({"num_key_value_heads": 3}, "4 heads over 3 key/value heads"),
        ({"num_attention_heads": "many"}, "does not describe a decoder"),
    ],
)
def test_description_that_does_not_fit(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    _llama().save_pretrained(tmp_path)
    _rewrite(tmp_path / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        Anatomy(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"spec": {}, "step": 1}'])
def test_state_that_cannot_be_read(checkpoint: Callable[..., Any], text: str) -> None:
    path = checkpoint().write()
    (path / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"state\.json does not describe a decoder"):
        Anatomy(path)


def test_weights_without_a_description(checkpoint: Callable[..., Any]) -> None:
    path = checkpoint().write()
    (path / "state.json").unlink()
    with pytest.raises(UserError, match=r"neither state\.json nor config\.json"):
        Anatomy(path)


def test_moments_of_another_run(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    ours.moments[f"{ours.name(0, 'q')}.exp_avg"] = np.ones((3, 3), dtype=np.float32)
    with pytest.raises(UserError, match="unlike its weight"):
        next(iter(Anatomy(ours.write()))).moment("q", "exp_avg")


def test_one_layer_in_memory_at_a_time(checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = checkpoint(widths=(24,) * 8)
    path = ours.write()
    live = {"now": 0, "peak": 0}
    read = Tensors.read

    def release(size: int) -> None:
        live["now"] -= size

    def counted(self: Tensors, name: str) -> np.ndarray:
        values = read(self, name)
        live["now"] += values.nbytes
        live["peak"] = max(live["peak"], live["now"])
        weakref.finalize(values, release, values.nbytes)
        return values

    monkeypatch.setattr(Tensors, "read", counted)
    analyze(path, resamples=1)
    layer_bytes = sum(ours.weight(0, kind).nbytes for kind in KINDS)
    assert layer_bytes < live["peak"] < 2 * layer_bytes
