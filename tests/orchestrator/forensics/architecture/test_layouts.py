"""The layouts of other projects: one known model, written as each of them would, is read as the model that it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BartModel,
    MBartModel,
    T5EncoderModel,
    T5Model,
)

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.kinds import PLACES
from orchestrator.forensics.architecture.live import live
from orchestrator.forensics.architecture.model import CheckpointModel
from tests.naming import names, naming
from tests.orchestrator.forensics.architecture.zoo.flow import silence
from tests.orchestrator.forensics.architecture.zoo.truth import check

WIDTH, HEADS, KV, SIZE, FFN, LAYERS, VOCABULARY = 32, 4, 2, 8, 40, 3, 48
GROUPED = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": SIZE,
}  # fmt: skip
Tensors = dict[str, Tensor]


def _known(path: Path, mark: str = "llama", **sizes: Any) -> tuple[CheckpointModel, Tensors]:
    """A model of transformers as it is read, and its tensors."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(mark, **GROUPED | {"pad_token_id": 0} | sizes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    return CheckpointModel(path), {"lm_head.weight": model.get_output_embeddings().weight.detach().clone()} | tensors


def _same(ours: CheckpointModel, known: CheckpointModel) -> None:
    assert len(ours) == len(known)
    for a, b in zip(ours, known, strict=True):
        assert (a.kinds, a.heads, a.width) == (b.kinds, b.heads, b.width)
        for kind in b.kinds:
            assert torch.equal(a.weight(kind), b.weight(kind)), kind
        for place in PLACES:
            gamma, truth = a.norm(place), b.norm(place)
            assert (gamma is None) == (truth is None), place
            assert gamma is None or torch.equal(gamma, truth), place
    assert torch.equal(torch.cat(list(ours.embedding())), torch.cat(list(known.embedding())))
    assert torch.equal(torch.cat(list(ours.head())), torch.cat(list(known.head())))
    scale, truth = ours.final_scale(), known.final_scale()
    assert (scale is None) == (truth is None)
    assert scale is None or torch.equal(scale, truth)


def _renamed(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """Tensors under other names: the longest parts first; those without a new name are left out."""
    found = {}
    for name, value in tensors.items():
        new = name
        for old in sorted(names, key=len, reverse=True):
            new = new.replace(old, names[old])
        found[new] = value.clone()
    return found


def _fused(tensors: Tensors, new: str, join: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensors:
    """q, k and v of each layer in one tensor, named `new` within `self_attn`."""
    found = dict(tensors)
    for i in range(LAYERS):
        q, k, v = (found.pop(f"model.layers.{i}.self_attn.{kind}_proj.weight") for kind in "qkv")
        found[f"model.layers.{i}.{new}.weight"] = join(q, k, v)
    return found


def _stacked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat([q, k, v])


def _by_group(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each key/value group: its query heads, its key head, its value head; row by row, without views of ours."""
    rows: list[Tensor] = []
    for group in range(KV):
        rows += list(q[group * (HEADS // KV) * SIZE : (group + 1) * (HEADS // KV) * SIZE])
        rows += [*k[group * SIZE : (group + 1) * SIZE], *v[group * SIZE : (group + 1) * SIZE]]
    return torch.stack(rows)


def _gate_up(tensors: Tensors, new: str) -> Tensors:
    found = dict(tensors)
    for i in range(LAYERS):
        gate, up = (found.pop(f"model.layers.{i}.mlp.{kind}_proj.weight") for kind in ("gate", "up"))
        found[f"model.layers.{i}.{new}.weight"] = torch.cat([gate, up])
    return found


LIT = {
    "model.embed_tokens": "transformer.wte", "model.layers": "transformer.h", "self_attn.o_proj": "attn.proj",
    "input_layernorm": "norm_1", "post_attention_layernorm": "norm_2", "mlp.gate_proj": "mlp.fc_1",
    "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj", "model.norm": "transformer.ln_f",
}  # fmt: skip
META = {
    "model.embed_tokens": "tok_embeddings", "model.layers": "layers", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "lm_head": "output",
    "model.norm": "norm",
}  # fmt: skip
MEGATRON = {
    "model.embed_tokens": "embedding.word_embeddings", "model.layers": "decoder.layers",
    "self_attn.o_proj": "self_attention.linear_proj", "mlp.down_proj": "mlp.linear_fc2",
    "model.norm": "decoder.final_layernorm", "lm_head": "output_layer",
}  # fmt: skip
MEGATRON_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "post_attention_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
LIT_CONFIG = {"name": "tiny", "n_layer": LAYERS, "n_head": HEADS, "n_query_groups": KV, "head_size": SIZE,
              "n_embd": WIDTH, "shared_attention_norm": False}  # fmt: skip


@pytest.mark.parametrize(("name", "join"), [("attn.qkv", _stacked), ("attn.attn", _by_group)])
@pytest.mark.parametrize("mark", ["llama", "gemma", "gemma2"])
@pytest.mark.parametrize("file", ["model_config.yaml", "lit_config.json"])
def test_litgpt(tmp_path: Path, name: str, join: Any, mark: str, file: str) -> None:
    known, tensors = _known(tmp_path / "known", mark)
    words = LIT | (
        {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "norm_2",
         "post_feedforward_layernorm": "post_mlp_norm"} if mark == "gemma2" else {}
    )  # fmt: skip
    (tmp_path / "lit").mkdir()
    torch.save({"model": _renamed(_fused(tensors, name, join), words)}, tmp_path / "lit/lit_model.pth")
    config = LIT_CONFIG | {"name": "Gemma-tiny" if mark.startswith("gemma") else "tiny"}
    text = yaml.safe_dump(config) if file.endswith("yaml") else json.dumps(config)
    (tmp_path / "lit" / file).write_text(text)
    ours = CheckpointModel(tmp_path / "lit")
    assert ours.family_name.startswith("litgpt")
    assert not ours.assumed
    _same(ours, known)


def test_litgpt_with_one_norm_for_both_branches(tmp_path: Path) -> None:
    known, tensors = _known(tmp_path / "known", "cohere")
    (tmp_path / "lit").mkdir()
    torch.save(_renamed(_fused(tensors, "attn.qkv", _stacked), LIT), tmp_path / "lit/lit_model.pth")
    (tmp_path / "lit/model_config.yaml").write_text(yaml.safe_dump(LIT_CONFIG | {"shared_attention_norm": True}))
    _same(CheckpointModel(tmp_path / "lit"), known)


@pytest.mark.parametrize("described", [True, False])
def test_meta_and_torchtitan(tmp_path: Path, described: bool) -> None:
    known, tensors = _known(tmp_path / "known")
    (tmp_path / "meta").mkdir()
    torch.save(_renamed(tensors, META), tmp_path / "meta/consolidated.00.pth")
    if described:
        params = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV, "norm_eps": 1e-5}
        (tmp_path / "meta/params.json").write_text(json.dumps(params))
    ours = CheckpointModel(tmp_path / "meta")
    assert ours.family_name == "meta"
    if described:
        _same(ours, known)
    else:
        assert [layer.heads for layer in ours] == [None] * LAYERS
        assert any("num_attention_heads" in said for said in ours.heads_assumed)


@pytest.mark.parametrize("norms", [MEGATRON_NORMS, {"post_attention_layernorm": "pre_mlp_layernorm"}])
@pytest.mark.parametrize("gated", [True, False])
def test_megatron_core(tmp_path: Path, norms: dict[str, str], gated: bool) -> None:
    known, tensors = _known(tmp_path / "known", "llama" if gated else "arcee")
    tensors = _fused(tensors, "self_attention.linear_qkv", _by_group)
    tensors = _gate_up(tensors, "mlp.linear_fc1") if gated else _renamed(tensors, {"mlp.up_proj": "mlp.linear_fc1"})
    (tmp_path / "mcore").mkdir()
    state = _renamed(tensors, MEGATRON | norms)
    torch.save({"model": state, "iteration": 5}, tmp_path / "mcore/model_optim_rng.pt")
    with pytest.raises(UserError, match=naming("number of heads", "config.json")):
        CheckpointModel(tmp_path / "mcore/model_optim_rng.pt")
    heads = {"num_attention_heads": HEADS, "num_query_groups": KV, "kv_channels": SIZE}
    (tmp_path / "mcore/config.json").write_text(json.dumps(heads))
    _same(CheckpointModel(tmp_path / "mcore/model_optim_rng.pt"), known)


def test_nanogpt(tmp_path: Path) -> None:
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCABULARY,
             "num_key_value_heads": HEADS}  # fmt: skip
    known, tensors = _known(tmp_path / "known", "gpt2", **sizes)
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {name: value.T.contiguous() if name.endswith(turned) else value for name, value in tensors.items()}
    arguments = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": 64, "bias": True}
    torch.save({"model": state, "model_args": arguments, "iter_num": 3}, tmp_path / "ckpt.pt")
    ours = CheckpointModel(tmp_path / "ckpt.pt")
    assert (ours.family_name, ours.assumed) == ("nanogpt", [])
    _same(ours, known)


def test_nanochat(tmp_path: Path) -> None:
    known, tensors = _known(tmp_path / "known", "nanochat")
    words = {"model.embed_tokens": "transformer.wte", "model.layers": "transformer.h", "self_attn.q_proj": "attn.c_q",
             "self_attn.k_proj": "attn.c_k", "self_attn.v_proj": "attn.c_v", "self_attn.o_proj": "attn.c_proj",
             "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}  # fmt: skip
    for step, heads in ((100, HEADS), (200, 2 * HEADS)):
        torch.save(_renamed(tensors, words), tmp_path / f"model_{step:06d}.pt")
        config = {"n_layer": LAYERS, "n_head": heads, "n_kv_head": KV * heads // HEADS, "n_embd": WIDTH}
        (tmp_path / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "model_config": config}))
    ours = CheckpointModel(tmp_path / "model_000100.pt")
    assert ours.family_name == "karpathy_nanochat"
    _same(ours, known)
    other = CheckpointModel(tmp_path / "model_000200.pt").layer(0).heads
    assert other is not None
    assert other.heads == 2 * HEADS


REMOTE: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any]]] = {
    "internlm2": (
        lambda t: _renamed(_fused(t, "attention.wqkv", _by_group), META | {"model.layers": "model.layers",
                           "model.embed_tokens": "model.tok_embeddings", "model.norm": "model.norm"}),
        {"num_key_value_heads": KV},
    ),
    "baichuan": (lambda t: _fused(t, "self_attn.W_pack", _stacked), {}),
    "qwen": (
        lambda t: _renamed(_fused(t, "attn.c_attn", _stacked), {
            "model.layers": "transformer.h", "model.embed_tokens": "transformer.wte", "self_attn.o_proj": "attn.c_proj",
            "mlp.up_proj": "mlp.w1", "mlp.gate_proj": "mlp.w2", "mlp.down_proj": "mlp.c_proj",
            "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "model.norm": "transformer.ln_f"}),
        {},
    ),
    "chatglm": (
        lambda t: _renamed(_gate_up(_fused(t, "self_attention.query_key_value", _stacked), "mlp.dense_h_to_4h"), {
            "model.layers": "transformer.encoder.layers", "model.embed_tokens": "transformer.embedding.word_embeddings",
            "self_attn.o_proj": "self_attention.dense", "mlp.down_proj": "mlp.dense_4h_to_h",
            "model.norm": "transformer.encoder.final_layernorm", "lm_head": "transformer.output_layer"}),
        {"multi_query_attention": True, "multi_query_group_num": KV, "num_layers": LAYERS, "kv_channels": SIZE},
    ),
}  # fmt: skip


@pytest.mark.parametrize("mark", REMOTE)
def test_families_whose_code_is_their_own(tmp_path: Path, mark: str) -> None:
    write, keys = REMOTE[mark]
    groups = KV if keys else HEADS
    known, tensors = _known(tmp_path / "known", num_key_value_heads=groups)
    (tmp_path / mark).mkdir()
    save_file({name: v.contiguous() for name, v in write(tensors).items()}, tmp_path / mark / "model.safetensors")
    config = {"model_type": mark, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    (tmp_path / mark / "config.json").write_text(json.dumps(config | keys))
    ours = CheckpointModel(tmp_path / mark)
    assert not ours.assumed
    _same(ours, known)


SIZES = {"d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": HEADS,
         "decoder_attention_heads": HEADS, "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN, "vocab_size": VOCABULARY,
         "pad_token_id": 0, "max_position_embeddings": 64}  # fmt: skip
T5 = {"d_model": WIDTH, "d_kv": 12, "d_ff": FFN, "num_layers": LAYERS, "num_heads": HEADS, "vocab_size": VOCABULARY,
      "pad_token_id": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("mark", "kind", "sizes"),
    [
        ("bart", BartModel, SIZES), ("mbart", MBartModel, SIZES), ("t5", T5Model, T5),
        ("t5", T5Model, T5 | {"feed_forward_proj": "gated-gelu"}),
        ("t5", T5EncoderModel, T5), *[(mark, AutoModel, SIZES) for mark in ("pegasus", "marian", "blenderbot")],
    ],
)  # fmt: skip
def test_the_encoder_of_an_encoder_and_decoder(tmp_path: Path, mark: str, kind: Any, sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(mark, **sizes)
    make = kind.from_config if kind is AutoModel else kind._from_config
    model = make(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path)
    if kind is not T5EncoderModel:
        with pytest.raises(UserError, match=naming("cross-attention", "--weights")):
            CheckpointModel(tmp_path)
    opened = CheckpointModel(tmp_path, weights="encoder")
    silence(model)
    assert check(opened, model.get_encoder(), None) == ""


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_own_encoder(tmp_path: Path, norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False).eval()
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    x = torch.randn(1, 5, WIDTH)
    count = {"num_attention_heads": HEADS}
    for model in (CheckpointModel(live(encoder)), CheckpointModel(live(encoder.state_dict(), count))):
        assert [said for said in model.assumed if names(said, "self_attn.in_proj_weight", "MultiheadAttention")]
        assert [said for said in model.assumed if names(said, "norm1.weight", "norm2.weight", "precede")]
        for ours, theirs in zip(model, encoder.layers, strict=True):
            assert not any(ours.norm(place) is not None for place in PLACES)
            q, k, v = ((x[0] @ ours.weight(kind).T).unflatten(-1, (HEADS, -1)).transpose(0, 1) for kind in "qkv")
            scores = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1)  # its biases are 0
            out, weights = theirs.self_attn(x, x, x, average_attn_weights=False)
            assert torch.allclose(scores, weights[0], atol=1e-5)
            assert torch.allclose((scores @ v).transpose(0, 1).flatten(1) @ ours.weight("o").T, out[0], atol=1e-5)
            assert torch.equal(ours.weight("up"), theirs.linear1.weight)
            assert torch.equal(ours.weight("down"), theirs.linear2.weight)
    bare = CheckpointModel(tmp_path / "encoder.pth")  # a third of the rows each, also without the heads
    assert torch.equal(bare.layer(1).weight("k"), encoder.layers[1].self_attn.in_proj_weight[WIDTH : 2 * WIDTH])
    assert bare.heads_assumed
