"""The activation probe: what each layer does to the residual stream of a few rows of tokens (SCIENCE §1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from models.transformer import Decoder


def relative_write(write: Tensor, stream: Tensor) -> Tensor:
    """‖write‖/‖stream‖ at each position, float64 [...]: of what is written to a residual stream [..., D]."""
    return write.double().norm(dim=-1) / stream.double().norm(dim=-1)


@torch.no_grad()
def probe(decoder: Decoder, tokens: Tensor) -> list[dict[str, float]]:
    """Per layer, `total_write` and `adjacent_alignment`: means over the positions of `tokens` [B, T].

    Block l takes the residual stream x_l [B, T, D] and returns x_{l+1}. Activations are compared in float64
    and dropped layer by layer.
    """
    result: list[dict[str, float]] = []

    def compare(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        before, after = inputs[0].double(), output.double()  # [B, T, D]
        write = relative_write(after - before, before)  # [B, T]
        alignment = cosine_similarity(before, after, dim=-1)
        result.append({"total_write": write.mean().item(), "adjacent_alignment": alignment.mean().item()})

    hooks = [block.register_forward_hook(compare) for block in decoder.model.layers]
    try:
        decoder(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return result
