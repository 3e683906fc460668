"""Refuses models whose layers have no defined roles, and checkpoints whose weights are packed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS = re.compile(r"(^|[._])(experts?|exps)[._]|block_sparse_moe\.|(^|\.)moe\.")
OTHER_SENSES = re.compile(r"vision|visual|image|video|audio|speech")  # encoders of other modalities, which are not read

QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale(_inv|_2)?|weight\.(absmax|quant_\w+(\..*)?)|SCB)$"
)

# What a layer may hold instead of, or beside, one attention and one FFN.
MIXERS = {
    "a state-space layer": re.compile(r"mamba|(^|[._])A_log$|(^|[._])ssm[._]|mixer\.conv1d"),
    "linear attention": re.compile(r"linear_attn|linear_attention|delta_net"),
    "a recurrent layer": re.compile(r"rg_lru|recurrent_block|time_mix|receptance|m?slstm|mlstm"),
    "a convolution": re.compile(r"\.\d+\.(short_)?conv\."),
    "latent attention": re.compile(r"\.(kv_a_proj\w*|kv_b_proj|q_a_proj|attn_kv_a_mqa|attn_q_a)\."),
    "cross-attention": re.compile(r"cross_?att|encdecattention|encoder_attn", re.IGNORECASE),
}


# model_type → why its layers are no attention over heads with an FFN after it.
OTHERWISE = {
    "convbert": "mixes attention with a convolution in every layer",
    "diffllama": "subtracts one attention from another, with values shared between pairs of heads",
    "flaubert": "keeps attention and FFN of a layer in separate lists",
    "fnet": "mixes tokens by a Fourier transform and has no attention",
    "funnel": "shortens the sequence between its blocks",
    "gemma3n": "keeps four streams, of which every layer predicts three",
    "gemma3n_text": "keeps four streams, of which every layer predicts three",
    "hrm_text": "runs two stacks of layers in turn, many times",
    "mobilebert": "narrows the stream before every layer and has several FFNs in each",
    "neomme": "takes from every value what its own token writes, and mixes values of the embedding in",
    "reformer": "uses one matrix for queries and keys",
    "squeezebert": "projects by grouped convolutions, not by matrices of the stream's width",
    "xlm": "keeps attention and FFN of a layer in separate lists",
    "xlnet": "keeps projections as three-dimensional tensors, for two streams",
}


CURES = {"cross-attention": ", or read the encoder beside it with --weights encoder"}


def refuse_unsupported(source: Path, names: Iterable[str], config: Mapping[str, Any], partial: bool = False) -> None:
    """Raise `UserError` for mixtures of experts, hybrids, and checkpoints whose weights are packed.

    `partial`: allow layers without attention, and mixtures of experts.
    """
    names = [name for name in sorted(names) if not OTHER_SENSES.search(name)]
    if reason := OTHERWISE.get(str(config.get("model_type"))):
        raise UserError(
            f"{source} declares the family {config['model_type']}, which {reason}: roles are defined for layers of one "
            "full self-attention and one FFN, so give a model whose layers are all of this kind."
        )
    if not partial:
        _refuse_experts(source, names, config)
    for what, pattern in MIXERS.items():
        if partial and what not in CURES:
            continue
        if found := next(filter(pattern.search, names), None):
            raise UserError(
                f"{source} has {what} ({found}), and roles are defined for layers of one full self-attention and one "
                f"FFN: give a model whose layers are all of this kind{CURES.get(what, '')}."
            )
    if found := next(filter(QUANTISED.search, names), None):
        raise UserError(
            f"{source} is quantised ({found}), and packed numbers are not weights: "
            "give the original checkpoint, or save this one dequantised in fp32, fp16 or bf16."
        )


def _refuse_experts(source: Path, names: list[str], config: Mapping[str, Any]) -> None:
    held = [name for name in names if EXPERTS.search(name)]
    if not held:  # Nemotron-H, Doge and others declare a number of experts that dense models leave unused
        return
    declared = max((config[key] for key in EXPERT_COUNTS if isinstance(config.get(key), int)), default=0)
    numbers = [int(match[1]) for name in held if (match := re.search(r"experts\.(\d+)\.", name))]
    count = declared or max(numbers, default=-1) + 1 or "an unknown number of"
    raise UserError(
        f"{source} is a mixture of experts, {count} experts a layer ({held[0]}), and roles are defined for one FFN per "
        "layer: give a dense model, or write each layer with a single expert's FFN into a checkpoint of its own."
    )
