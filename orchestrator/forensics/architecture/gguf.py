"""GGUF's own layout: one set of names for every architecture, and the description that the file carries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from orchestrator.forensics.architecture.kinds import PLACES
from orchestrator.forensics.architecture.layout import Family, Heads, Part, halves, stacked, whole
from orchestrator.forensics.weights.files import STEPS
from orchestrator.forensics.weights.tensors import Tensors

# Key of a config.json → GGUF's, less the architecture before it.
CONFIG = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "rope_theta": "rope.freq_base",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
}

GATING = {1: "softmax", 2: "sigmoid"}  # llama.cpp's numbers of a router's scores
WITHIN = re.compile(r"blk\.\d+\.(.+)\.weight")

# Architectures whose q and k llama.cpp stores with the two coordinates that its rotary embedding turns side by side.
INTERLEAVED = frozenset(
    ("llama", "llada", "deci", "mistral3", "granite", "granitemoe", "smollm3", "arcee", "olmo", "minicpm", "internlm2",
     "baichuan", "xverse")
)  # fmt: skip

# Position → the names of its norm in GGUF; the first that the file holds is taken.
NORMS: dict[str, tuple[str, ...]] = {
    "pre_attention": ("attn_norm_2", "attn_norm"),  # of Falcon's two, the first feeds attention and the other the FFN
    "post_attention": ("post_attention_norm", "attn_output_norm"),
    "pre_ffn": ("ffn_norm",),
    "post_ffn": ("post_ffw_norm", "layer_output_norm"),
}


def is_gguf(metadata: Mapping[str, Any]) -> bool:
    """True for the metadata of a GGUF file, whose values are plain; another file's are dicts, and a step."""
    return any(not isinstance(value, Mapping) and key not in STEPS for key, value in metadata.items())


def config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json, from the file's metadata; a list holds one entry per layer.

    Raises `LookupError` for a file that names no architecture.
    """
    name = str(metadata["general.architecture"])
    found = {key: value for key, of in CONFIG.items() if (value := metadata.get(f"{name}.{of}")) is not None}
    if scoring := GATING.get(metadata.get(f"{name}.expert_gating_func", 0)):
        found["scoring_func"] = scoring
    scaling = metadata.get(f"{name}.rope.scaling.type", "none")
    return {"model_type": name, "rope_scaling": {"rope_type": "default" if scaling == "none" else scaling}} | found


def layout(architecture: str, tensors: Tensors) -> Family:
    """The layout of a GGUF file, by the names in its layers. Norm scales are stored as they multiply."""
    held = {match[1] for match in map(WITHIN.fullmatch, sorted(tensors.names)) if match}
    mixed = "ffn_up_exps" in held
    turn = pairs_apart if architecture in INTERLEAVED else whole
    parts = [Part("attn_q.weight", ("q",), turn), Part("attn_k.weight", ("k",), turn), Part("attn_v.weight", ("v",))]
    if "attn_qkv" in held:
        parts = [Part("attn_qkv.weight", ("q", "k", "v"), stacked)]
    inward = [Part("ffn_gate.weight", ("gate",))] if "ffn_gate" in held else []
    inward += [Part("ffn_up.weight", ("up",))]
    if "ffn_gate" not in held and _is_double(tensors):
        inward = [Part("ffn_up.weight", ("gate", "up"), halves)]
    others = [Part("attn_output.weight", ("o",)), *inward, Part("ffn_down.weight", ("down",))]
    norms = {place: next((name for name in NORMS[place] if name in held), "") for place in PLACES}
    if norms["pre_attention"] and not norms["pre_ffn"]:
        if norms["pre_attention"] != "attn_norm":
            norms["pre_ffn"] = "attn_norm"
        elif norms["post_attention"] and not norms["post_ffn"]:  # named as in Llama, where it precedes the FFN
            norms["pre_ffn"], norms["post_attention"] = norms["post_attention"], ""
        elif not norms["post_attention"]:  # one norm serves both branches of a parallel block
            norms["pre_ffn"] = norms["pre_attention"]
    is_encoder = tensors.metadata.get(f"{architecture}.attention.causal") is False  # nothing reads its stream directly
    return Family(
        (*parts, *others), {place: f"{name}.weight" for place, name in norms.items() if name},
        mixed=mixed, aside="_exps|_shexp|ffn_gate_inp|exp_probs" if mixed else "",
        layer="blk.{}.", embed="token_embd.weight",
        final="" if is_encoder else "output_norm.weight", head="" if is_encoder else "output.weight",
    )  # fmt: skip


def pairs_apart(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """One matrix whose rows lie, head by head, as transformers has them: row i and row i + head_dim/2 are a pair."""
    if heads is None:
        raise ValueError("the number of heads is unknown")
    return [raw.view(-1, heads.head_dim // 2, 2, raw.shape[1]).transpose(1, 2).reshape(raw.shape)]


def _is_double(tensors: Tensors) -> bool:
    """True where the matrix into the FFN is twice as high as the one out of it is wide: it holds the gate too."""
    up, down = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"
    return up in tensors and down in tensors and tensors.shape(up)[0] == 2 * tensors.shape(down)[1]
