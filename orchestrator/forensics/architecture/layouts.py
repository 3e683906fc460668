"""The layouts of projects whose files declare no family: they are known by their names alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.kinds import PLACES
from orchestrator.forensics.architecture.layout import (
    QK_NORM,
    Family,
    Part,
    fused,
    grouped,
    halves,
    norms,
    plain,
    stacked,
)
from orchestrator.forensics.weights.tensors import Tensors

_GPT: dict[str, Any] = {"layer": "h.{}.", "embed": "wte.weight", "final": "ln_f.weight"}
_LIT_FFN = {
    "": plain(up="mlp.fc", down="mlp.proj"),
    "_gated": plain(gate="mlp.fc_1", up="mlp.fc_2", down="mlp.proj"),
}
_LIT_QKV = {"": fused("attn.qkv", stacked), "_before_2025": fused("attn.attn", grouped)}
_LIT_NORMS = norms("norm_1", "post_attention_norm", "norm_2", "post_mlp_norm")
_LIT_SHARED = norms("norm_1", "post_attention_norm", "norm_1", "post_mlp_norm")
_MEGATRON = fused("self_attention.linear_qkv", grouped) + plain(o="self_attention.linear_proj", down="mlp.linear_fc2")
_MEGATRON_FFN = {"": plain(up="mlp.linear_fc1"), "_gated": fused("mlp.linear_fc1", halves, ("gate", "up"))}
_MEGATRON_NORMS = {  # Transformer Engine keeps a norm with the matrix that reads it
    "": norms("input_layernorm", None, "pre_mlp_layernorm"),
    "_fused": {"pre_attention": "self_attention.linear_qkv.layer_norm_weight",
               "pre_ffn": "mlp.linear_fc1.layer_norm_weight"},
}  # fmt: skip

# Where `when` has keys, the description beside the weights must have them too: those entries come first.
LAYOUTS = {
    **{
        f"litgpt{qkv}{ffn}{shifted}": Family(
            _LIT_QKV[qkv] + plain(o="attn.proj") + _LIT_FFN[ffn], places, optional=PLACES, when=when, offset=offset,
            starts_at_0=False, **_GPT,
        )
        for qkv in _LIT_QKV
        for ffn in _LIT_FFN
        for shifted, places, when, offset in (
            ("_shifted", _LIT_NORMS, {"is_shifted": True}, 1.0),
            ("_shared", _LIT_SHARED, {"shared_attention_norm": True}, 0.0),
            ("", _LIT_NORMS, {}, 0.0),
        )
    },
    **{
        f"megatron_core{ffn}{places}": Family(
            _MEGATRON + _MEGATRON_FFN[ffn], _MEGATRON_NORMS[places], embed="embedding.word_embeddings.weight",
            layer="decoder.layers.{}.", final="decoder.final_layernorm.weight", head="output_layer.weight",
        )
        for ffn in _MEGATRON_FFN
        for places in _MEGATRON_NORMS
    },
    "nanogpt": Family(
        fused("attn.c_attn", stacked) + plain(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"),
        norms("ln_1", None, "ln_2"), **_GPT,
    ),
    "karpathy_nanochat": Family(
        plain(q="attn.c_q", k="attn.c_k", v="attn.c_v", o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"), {},
        aside="ve_gate", **_GPT,
    ),
    "meta": Family(
        plain(q="attention.wq", k="attention.wk", v="attention.wv", o="attention.wo", gate="feed_forward.w1",
              up="feed_forward.w3", down="feed_forward.w2"),
        norms("attention_norm", None, "ffn_norm"), embed="tok_embeddings.weight", head="output.weight",
    ),
}  # fmt: skip


def recognise(source: Path, tensors: Tensors, config: Mapping[str, Any]) -> tuple[str, Family, str] | None:
    """Name, layout and stem of the project whose names these are, all of them; None where they are nobody's.

    Raises `UserError` where they are those of several.
    """
    found: list[tuple[str, Family, str]] = []
    for name, family in LAYOUTS.items():
        if any(config.get(key) != value for key, value in family.when.items()):
            continue
        first = family.layer.format(0) + family.parts[0].tensor
        for stem in sorted(held.removesuffix(first) for held in tensors.names if held.endswith(first)):
            if _fits(family, stem + family.layer.format(0), tensors) and not any(
                family.parts == other.parts and of == stem for _, other, of in found
            ):
                found.append((name, family, stem))
    if len(found) > 1:
        raise UserError(
            f"{source} can be read as {found[0][0]} ({found[0][2]}…) and as {found[1][0]} ({found[1][2]}…): "
            "put the description of this model beside the weights, or give one model alone."
        )
    return found[0] if found else None


def _fits(family: Family, prefix: str, tensors: Tensors) -> bool:
    """True where the layer under `prefix` has the family's tensors, no others, and an FFN that fits itself."""
    names = [part.tensor for part in family.parts]
    needed = {*names, *(norm for place, norm in family.norms.items() if place not in family.optional)}
    held = {name.removeprefix(prefix) for name in tensors.names if name.startswith(prefix)}
    known = {*needed, *family.norms.values()}
    others = {name for name in held - known if name.endswith("weight") and not QK_NORM.search(name)}
    if not needed <= held or any(not family.leaves(name) for name in others):
        return False
    try:
        up, down = (_matrix(family.part(kind), kind, prefix, tensors) for kind in ("up", "down"))
    except (RuntimeError, ValueError, IndexError):
        return False
    first = family.parts[0]
    reads = tensors.shape(prefix + first.tensor)[0 if first.transposed else 1]
    return up == (down[1], down[0]) and up[1] == reads


def _matrix(part: Part, kind: str, prefix: str, tensors: Tensors) -> tuple[int, ...]:
    stored = torch.empty(tensors.shape(prefix + part.tensor), device="meta")
    return tuple(part.matrices(stored, None)[kind].shape)
