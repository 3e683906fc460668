"""The layouts of known families: the names of their matrices and norms, one entry of `FAMILIES` per family."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from orchestrator.forensics.architecture.kinds import KINDS, PLACES

QK_NORM = re.compile(r"(^|[._])(q|k|query|key)_?(layer_?)?norm")  # a norm within attention, not in the residual stream


@dataclass(frozen=True)
class Heads:
    """The attention heads of one layer."""

    heads: int
    kv_heads: int
    head_dim: int


# Splits a stored tensor into matrices [out, in]; views where the layout allows them.
Split = Callable[[Tensor, Heads | None], Sequence[Tensor]]


def whole(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """One matrix, a `Linear.weight` of its own."""
    return [raw]


def halves(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """Two matrices of equal height, stored one above the other."""
    return raw.tensor_split(2)


def stacked(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """q, k and v, stored one above the other; equal thirds where the heads are unknown."""
    if heads is None:
        return raw.tensor_split(3)
    kv = heads.kv_heads * heads.head_dim
    return raw.split([heads.heads * heads.head_dim, kv, kv])


def grouped(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """q, k and v, stored group by group: query heads, then the key and value head that they share. Copies the tensor.

    Groups of one query head are GPT-NeoX's interleaving; a single group is multi-query attention.
    """
    if heads is None:
        raise ValueError("the number of heads is unknown")
    groups = raw.view(heads.kv_heads, heads.heads // heads.kv_heads + 2, heads.head_dim, raw.shape[1])
    return [part.flatten(0, 2) for part in (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])]


@dataclass(frozen=True)
class Part:
    """One stored tensor of a layer, and the matrices it holds, in order."""

    tensor: str
    kinds: tuple[str, ...]
    split: Split = whole
    transposed: bool = False  # stored [in, out], as GPT-2's Conv1D is

    def matrices(self, raw: Tensor, heads: Heads | None) -> dict[str, Tensor]:
        """Kind → its matrix [out, in], from the stored tensor."""
        return dict(zip(self.kinds, self.split(raw.T if self.transposed else raw, heads), strict=True))


@dataclass(frozen=True)
class Family:
    """The layout of a family. Names are relative to a stem (`model.`, `bert.`, none …) that is found in the file."""

    parts: tuple[Part, ...]
    norms: Mapping[str, str]  # of PLACES → name within the layer; parallel blocks have one norm at two places
    declared: tuple[str, ...] = ()  # "norm=…" in our spec, else a model_type; empty: its name in `FAMILIES`
    when: Mapping[str, Any] = field(default_factory=dict)  # further config keys that must have these values
    offset: float = 0.0  # added to the stored norm scale to get the one that multiplies
    optional: tuple[str, ...] = ()  # places whose norm some layers do without
    layer: str = "layers.{}."
    embed: str = "embed_tokens.weight"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of matrices it has, in the order of `KINDS`."""
        held = {kind for part in self.parts for kind in part.kinds}
        return tuple(kind for kind in KINDS if kind in held)

    def part(self, kind: str) -> Part:
        """The stored tensor that holds the matrix of this kind."""
        return next(part for part in self.parts if kind in part.kinds)


def _plain(**names: str) -> tuple[Part, ...]:
    return tuple(Part(f"{name}.weight", (kind,)) for kind, name in names.items())


def _fused(tensor: str, split: Split, kinds: tuple[str, ...] = ("q", "k", "v")) -> tuple[Part, ...]:
    return (Part(f"{tensor}.weight", kinds, split),)


def _megatron(attention: str) -> tuple[Part, ...]:
    """The parts of a descendant of Megatron, whose attention module has the name `attention`."""
    others = _plain(o=f"{attention}.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h")
    return _fused(f"{attention}.query_key_value", grouped) + others


def _norms(*names: str | None) -> dict[str, str]:
    """Position → name of its norm, from names in the order of PLACES; None where the family has no norm."""
    return {place: f"{name}.weight" for place, name in zip(PLACES, names, strict=False) if name}


_QKV = _plain(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj")
_ATTENTION = _QKV + _plain(o="self_attn.o_proj")
_UP_DOWN = _plain(up="mlp.up_proj", down="mlp.down_proj")
_LLAMA = _ATTENTION + _plain(gate="mlp.gate_proj") + _UP_DOWN
_GATE_UP_DOWN = _fused("mlp.gate_up_proj", halves, ("gate", "up")) + _plain(down="mlp.down_proj")
_CONV1D = tuple(
    replace(part, transposed=True)
    for part in (*_fused("attn.c_attn", stacked), *_plain(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"))
)

_PRE = _norms("input_layernorm", None, "post_attention_layernorm")
_POST = _norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_PARALLEL = _norms("input_layernorm", None, "input_layernorm")
_SANDWICH = _norms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
_LN = _norms("ln_1", None, "ln_2")
_GPT: dict[str, Any] = {"layer": "h.{}.", "embed": "wte.weight"}
_BLOOM: dict[str, Any] = _GPT | {"parts": _megatron("self_attention"), "embed": "word_embeddings.weight"}
_OPT: dict[str, Any] = {"declared": ("opt",), "parts": _QKV + _plain(o="self_attn.out_proj", up="fc1", down="fc2")}
_BERT: dict[str, Any] = {
    "parts": _plain(
        q="attention.self.query", k="attention.self.key", v="attention.self.value", o="attention.output.dense",
        up="intermediate.dense", down="output.dense",
    ),
    "norms": _norms(None, "attention.output.LayerNorm", None, "output.LayerNorm"),
    "layer": "encoder.layer.{}.",
    "embed": "embeddings.word_embeddings.weight",
}  # fmt: skip

# The first entry whose `declared` and `when` both match is taken: special families come before general ones.
FAMILIES = {
    "llama": Family(
        _LLAMA, _PRE,
        declared=("norm=pre", "llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "granite", "smollm3",
               "seed_oss", "helium", "ernie4_5", "internlm3"),
    ),
    "llama_sandwich": Family(_LLAMA, _SANDWICH, declared=("norm=sandwich",)),
    "gemma": Family(_LLAMA, _PRE, offset=1.0),
    "gemma2": Family(_LLAMA, _SANDWICH, offset=1.0),
    "gemma3": Family(_LLAMA, _SANDWICH, declared=("gemma3_text", "gemma3"), offset=1.0),
    "vaultgemma": Family(_LLAMA, _norms("input_layernorm", None, "pre_feedforward_layernorm"), offset=1.0),
    "olmo": Family(_LLAMA, {}),
    "olmo2": Family(_LLAMA, _POST, declared=("olmo2", "olmo3", "exaone4")),
    "cohere": Family(_LLAMA, _PARALLEL, declared=("cohere", "cohere2")),
    "stablelm_parallel": Family(_LLAMA, _PARALLEL, declared=("stablelm",), when={"use_parallel_residual": True}),
    "stablelm": Family(_LLAMA, _PRE),
    "nemotron": Family(_ATTENTION + _UP_DOWN, _PRE, offset=1.0),
    "arcee": Family(_ATTENTION + _UP_DOWN, _PRE),
    "apertus": Family(_ATTENTION + _UP_DOWN, _norms("attention_layernorm", None, "feedforward_layernorm")),
    "starcoder2": Family(_ATTENTION + _plain(up="mlp.c_fc", down="mlp.c_proj"), _PRE),
    "phi": Family(_QKV + _plain(o="self_attn.dense", up="mlp.fc1", down="mlp.fc2"), _PARALLEL),
    "phi3": Family(_fused("self_attn.qkv_proj", stacked) + _plain(o="self_attn.o_proj") + _GATE_UP_DOWN, _PRE),
    "glm": Family(_ATTENTION + _GATE_UP_DOWN, _PRE),
    "glm4": Family(
        _ATTENTION + _GATE_UP_DOWN,
        _norms("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ),
    "persimmon": Family(_megatron("self_attn"), _PRE),
    "gpt_neox": Family(_megatron("attention"), _PRE, embed="embed_in.weight"),
    "gpt1": Family(
        _CONV1D, _norms(None, "ln_1", None, "ln_2"), declared=("openai-gpt",), layer="h.{}.",
        embed="tokens_embed.weight",
    ),
    "gpt2": Family(_CONV1D, _LN, **_GPT),
    "gpt_bigcode": Family(
        _fused("attn.c_attn", grouped) + _plain(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"), _LN, **_GPT,
    ),
    "gptj": Family(
        _plain(q="attn.q_proj", k="attn.k_proj", v="attn.v_proj", o="attn.out_proj", up="mlp.fc_in", down="mlp.fc_out"),
        _norms("ln_1", None, "ln_1"), **_GPT,
    ),
    "gpt_neo": Family(
        _plain(q="attn.attention.q_proj", k="attn.attention.k_proj", v="attn.attention.v_proj",
               o="attn.attention.out_proj", up="mlp.c_fc", down="mlp.c_proj"),
        _LN, **_GPT,
    ),
    "mpt": Family(
        _fused("attn.Wqkv", stacked) + _plain(o="attn.out_proj", up="ffn.up_proj", down="ffn.down_proj"),
        _norms("norm_1", None, "norm_2"), layer="blocks.{}.", embed="wte.weight",
    ),
    "bloom": Family(norms=_PRE, **_BLOOM),
    "falcon_one_norm": Family(
        norms=_PARALLEL, declared=("falcon",), when={"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
        **_BLOOM,
    ),
    "falcon_two_norms": Family(
        norms=_norms("ln_attn", None, "ln_mlp"), declared=("falcon",), when={"new_decoder_architecture": True}, **_BLOOM
    ),
    "falcon_sequential": Family(norms=_PRE, declared=("falcon",), when={"parallel_attn": False}, **_BLOOM),
    "falcon": Family(norms=_PARALLEL, **_BLOOM),
    "opt_post": Family(
        norms=_norms(None, "self_attn_layer_norm", None, "final_layer_norm"), when={"do_layer_norm_before": False},
        **_OPT,
    ),
    "opt": Family(norms=_norms("self_attn_layer_norm", None, "final_layer_norm"), **_OPT),
    "bert": Family(**_BERT),
    "roberta": Family(declared=("roberta", "xlm-roberta", "camembert", "electra"), **_BERT),
    "distilbert": Family(
        _plain(q="attention.q_lin", k="attention.k_lin", v="attention.v_lin", o="attention.out_lin",
               up="ffn.lin1", down="ffn.lin2"),
        _norms(None, "sa_layer_norm", None, "output_layer_norm"),
        layer="transformer.layer.{}.", embed="embeddings.word_embeddings.weight",
    ),
    "modernbert": Family(
        _fused("attn.Wqkv", stacked) + _fused("mlp.Wi", halves, ("gate", "up")) + _plain(o="attn.Wo", down="mlp.Wo"),
        _norms("attn_norm", None, "mlp_norm"), optional=("pre_attention",),
        embed="embeddings.tok_embeddings.weight",
    ),
}  # fmt: skip
FAMILIES = {name: replace(family, declared=family.declared or (name,)) for name, family in FAMILIES.items()}


def find(declared: str, config: Mapping[str, Any]) -> tuple[str, Family] | None:
    """Name and layout of the family that a checkpoint declares; None for one that is not in the table."""
    for name, family in FAMILIES.items():
        if declared in family.declared and all(config.get(key) == value for key, value in family.when.items()):
            return name, family
    return None
