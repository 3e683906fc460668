"""The parts of a layer: attention or another mixer, and an FFN or experts."""

from __future__ import annotations

import re
from collections.abc import Collection

from orchestrator.forensics.architecture.experts import Mixture

USUAL = ["attention", "FFN"]  # what a layer holds in models that are neither hybrids nor mixtures
EXPERTS = re.compile(r"(^|[._])(experts?|exps)[._]|block_sparse_moe\.|(^|\.)moe\.")

# What a layer may hold instead of, or beside, one full self-attention → a pattern of its tensors' names.
MIXERS = {
    "state-space": re.compile(r"mamba|(?<!linear_attn)[._]A_log$|(^|[._])ssm[._]|mixer\.conv1d"),
    "linear attention": re.compile(r"linear_attn|linear_attention|delta_net"),
    "recurrent": re.compile(r"rg_lru|recurrent_block|time_mix|receptance|m?slstm|mlstm"),
    "convolution": re.compile(r"\.\d+\.(short_)?conv\."),
    "latent attention": re.compile(r"\.(kv_a_proj\w*|kv_b_proj|q_a_proj|attn_kv_a_mqa|attn_q_a)\."),
    "cross-attention": re.compile(r"cross_?att|encdecattention|encoder_attn", re.IGNORECASE),
}


def instead(branch: str, names: Collection[str]) -> list[str]:
    """The parts of a layer that stand for a branch that it lacks: mixers for attention, experts for the FFN.

    `names`: of the tensors in the layer.
    """
    patterns = MIXERS if branch == "attention" else {"experts": EXPERTS}
    return [part for part, pattern in patterns.items() if any(map(pattern.search, names))]


def holdings(kinds: Collection[str], names: Collection[str], experts: Mixture | None) -> list[str]:
    """The parts of a layer with these kinds of matrices, such as `state-space` and `FFN`."""
    attention, ffn = USUAL
    held = [attention] if "o" in kinds else instead("attention", names)
    held += [ffn] if "down" in kinds else []
    if experts is not None:
        return [*held, f"{experts.count} experts" + (" + shared" if experts.shared else "")]
    return held + ([] if "down" in kinds else instead("ffn", names))
