"""The stream of random tokens: each layer's effect on the residual stream, from the weights alone (SCIENCE §1).

Rows of the embedding of tokens drawn evenly from the vocabulary go through the layers while these are read, one at a
time. Neither text nor a tokenizer is needed, and the model is never built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention import rope_tables, rotate
from models.transformer import read_prefix, write_prefix
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.architecture.layer import Layer
from orchestrator.forensics.architecture.layout import QK_NORM
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.probe import relative_write

# The measures that it gives.
STREAMED = ("stream_rms", "total_write", "attention_write", "ffn_write", "write_share", "adjacent_alignment")
ROWS, LENGTH = 2, 32  # random tokens
SEED = 0  # a part of the definition: the same tokens for every reading of a model
LAYOUTS = frozenset(
    ("norm=pre", "norm=sandwich", "llama", "mistral")
)  # RMSNorm before each branch, RoPE, SiLU, no bias
FAR = frozenset(("default", "llama3"))  # types of RoPE that are the plain one over so few positions


class Stream:
    """The residual stream x [ROWS, LENGTH, width] of random tokens, as far as the layers have taken it."""

    def __init__(self, start: Tensor, theta: float, eps: float) -> None:
        """`start`: what the embedding writes; `theta`: RoPE's base; `eps`: of the RMSNorms."""
        self.x, self.theta, self.eps = start, theta, eps

    @torch.no_grad()
    def advance(self, layer: Layer, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Take the stream through the layer, whose matrices have their pre-norms folded in; the layer's measures on it.

        Means over the tokens whose stream is not zero: `stream_norm`, `total_write`, `attention_write`, `ffn_write`
        and `adjacent_alignment`, as the probe defines them.
        """
        x = read_prefix(self.x, layer.width)
        attention = self._scaled(layer, "post_attention", self._attention(self._normed(x), layer, weights))
        read = self._normed(x + attention)
        hidden = F.silu(read @ weights["gate"].T) * (read @ weights["up"].T)
        ffn = self._scaled(layer, "post_ffn", hidden @ weights["down"].T)
        before, middle = self.x, write_prefix(self.x, x + attention)
        self.x = after = write_prefix(self.x, x + attention + ffn)
        live = before.any(dim=-1)  # an unused token's embedding may be zero
        values = {
            "stream_norm": before.norm(dim=-1),
            "total_write": relative_write(after - before, before),
            "attention_write": relative_write(attention, before),
            "ffn_write": relative_write(ffn, middle),
            "adjacent_alignment": F.cosine_similarity(before.double(), after.double(), dim=-1),
        }
        return {name: float(value[live].mean()) for name, value in values.items()}

    def _attention(self, read: Tensor, layer: Layer, weights: Mapping[str, Tensor]) -> Tensor:
        assert layer.heads is not None
        rope = rope_tables(LENGTH, layer.heads.head_dim, self.theta, read.device)
        q, k, v = ((read @ weights[kind].T).unflatten(-1, (-1, layer.heads.head_dim)) for kind in ("q", "k", "v"))
        q, k, v = rotate(q, rope).transpose(1, 2), rotate(k, rope).transpose(1, 2), v.transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(2) @ weights["o"].T

    def _normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)

    def _scaled(self, layer: Layer, place: str, branch: Tensor) -> Tensor:
        """The branch behind its post-norm, where it has one."""
        gamma = layer.norm(place)
        return branch if gamma is None else self._normed(branch) * gamma.to(branch)


def random_stream(model: CheckpointModel, device: torch.device) -> Stream | None:
    """The stream before the first layer; None for a model whose layers it cannot follow exactly."""
    config = model.description.config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    whole = all(set(KINDS) == set(model.kinds(index)) for index in range(len(model))) and None not in model.heads
    if model.embedding_shape is None or not whole or not _followed(model, config, rope):
        return None
    draw = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(model.embedding_shape[0], (ROWS * LENGTH,), generator=draw)
    rows = read_prefix(model.embedding_rows(tokens.tolist()), model.shape(0, "q")[1])
    start = torch.zeros(ROWS, LENGTH, max(layer.width for layer in model))
    scale = model.embedding_shape[1] ** 0.5 if model.description.declared == "norm=sandwich" else 1.0
    start[..., : rows.shape[1]] = rows.unflatten(0, (ROWS, LENGTH)) * scale
    theta = config.get("rope_theta") or rope.get("rope_theta") or 10_000.0
    return Stream(start.to(device), float(theta), float(config.get("rms_norm_eps") or config.get("norm_eps") or 1e-6))


def _followed(model: CheckpointModel, config: Mapping[str, Any], rope: Mapping[str, Any]) -> bool:
    within = [name for name in model.tensors.names if name.startswith(model.prefix(0))]
    return (
        model.description.declared in LAYOUTS
        and config.get("hidden_act", "silu") == "silu"
        and rope.get("rope_type", rope.get("type", "default")) in FAR
        and config.get("partial_rotary_factor", rope.get("partial_rotary_factor")) in (None, 1.0)
        and (config.get("sliding_window") or LENGTH) >= LENGTH
        and not any(name.endswith(".bias") or QK_NORM.search(name) for name in within)
    )
