"""Causal attention with rotary positions: torch's kernels, and one of our own for short sequences on a CPU."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .spec import LayerShape

Rope = tuple[Tensor, Tensor]  # cos, sin: [head_dim, T]

SHORT = 256  # longest sequence whose attention weights, heads · T² numbers a row, are kept for the backward pass
BLOCK = 32  # queries at a time: a block does not compute the weights of the positions after its last query


def rope_tables(seq_len: int, head_dim: int, theta: float, device: torch.device) -> Rope:
    """cos and sin of RoPE's angles in float32, both [head_dim, seq_len] (Su et al. 2021).

    Coordinate i is paired with i + head_dim/2, as in Llama, and sin has the sign of the rotation.
    """
    frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angle = torch.outer(frequency, torch.arange(seq_len, dtype=torch.float32, device=device))  # [head_dim/2, T]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos)), torch.cat((-sin, sin))


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """RoPE applied to x [B, T, heads, head_dim], in float32, returned in x's precision."""
    cos, sin = (table.T.unsqueeze(1) for table in rope)  # [T, 1, head_dim]
    return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).type_as(x)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions and, where kv_heads < heads, grouped queries.

    `ShortAttention` reads the weights of q, k and v, so that hooks on those three modules may not be called.
    """

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.grouped = shape.kv_heads < shape.heads
        kv_width = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.width, shape.attention_width, bias=False)
        self.k_proj = nn.Linear(shape.width, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.width, kv_width, bias=False)
        self.o_proj = nn.Linear(shape.attention_width, shape.width, bias=False)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:  # [B, T, width] → [B, T, width]
        return self.o_proj(self._mixed_short(x, rope) if _is_short(x) else self._mixed(x, rope))

    def _mixed(self, x: Tensor, rope: Rope) -> Tensor:  # [B, T, width] → [B, T, heads · head_dim]
        heads = (*x.shape[:2], -1, self.head_dim)
        q = rotate(self.q_proj(x).view(heads), rope).transpose(1, 2)  # [B, heads, T, head_dim]
        k = rotate(self.k_proj(x).view(heads), rope).transpose(1, 2)  # [B, kv_heads, T, head_dim]
        v = self.v_proj(x).view(heads).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.grouped)
        return mixed.transpose(1, 2).flatten(2)

    def _mixed_short(self, x: Tensor, rope: Rope) -> Tensor:
        weights = (self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        mixed: Tensor = ShortAttention.apply(x, *weights, *rope)
        return mixed


def _is_short(x: Tensor) -> bool:
    """True where `ShortAttention` is faster than torch's kernels: few positions in float32 on a CPU."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[1] <= SHORT
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class ShortAttention(torch.autograd.Function):
    """Attention to x [B, T, width] before the output projection, [B, T, heads · head_dim].

    It has few operations, each over the whole batch, and keeps positions on the last axis, where they are contiguous:
    narrow heads cost no more than wide ones. The softmax's weights are kept rather than computed again. The transforms
    of `torch.func` and a second derivative need torch's own attention (float64, or a longer sequence, has it).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        dim = cos.shape[0]
        heads, kv_heads = wq.shape[0] // dim, wk.shape[0] // dim
        tokens = x.reshape(-1, width)
        weight = torch.cat((wq * dim**-0.5, wk, wv))  # scores then need no further scale
        projected = (weight @ tokens.T).view(-1, dim, batch, length).transpose(1, 2)  # [q, k and v heads, B, dim, T]
        turned = _turn(projected[: heads + kv_heads], cos, sin)
        q = turned[:heads].flatten(0, 1)  # [heads · B, dim, T]
        k = _spread(turned[heads:], heads)
        v = _spread(projected[heads + kv_heads :], heads)
        mixed = x.new_empty(heads, dim, batch, length)
        future = x.new_full((BLOCK, BLOCK), -math.inf).triu(1)  # keys after their query
        shares = []
        for start, end in blocks(length):
            scores = torch.bmm(q[:, :, start:end].mT, k[:, :, :end])  # [heads · B, queries, keys]
            scores[:, :, start:].add_(future[: end - start, : end - start])
            share = torch.softmax(scores, -1, out=scores)
            part = torch.bmm(v[:, :, :end], share.mT)  # [heads · B, dim, queries]
            mixed[..., start:end] = part.view(heads, batch, dim, -1).transpose(1, 2)
            shares.append(share)
        ctx.save_for_backward(tokens, weight, cos, sin, q, k, v, *shares)
        return mixed.view(heads * dim, -1).T.view(batch, length, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, cos, sin, q, k, v, *shares = ctx.saved_tensors
        dim, batch, length = cos.shape[0], *gradient.shape[:2]
        heads = gradient.shape[2] // dim
        kv_heads = (weight.shape[0] // dim - heads) // 2
        by_head = gradient.reshape(batch, length, heads, dim).permute(2, 0, 1, 3)
        g = by_head.reshape(-1, length, dim)  # [heads · B, T, dim]
        dq = torch.empty_like(q)
        for (start, end), share in zip(blocks(length), shares, strict=True):
            part = g[:, start:end]
            scores = torch.bmm(part, v[:, :, :end])
            torch._softmax_backward_data(scores, share, -1, share.dtype, grad_input=scores)
            dq[:, :, start:end] = torch.bmm(k[:, :, :end], scores.mT)
            dk_part, dv_part = torch.bmm(q[:, :, start:end], scores), torch.bmm(part.mT, share)
            if end == length:  # the first block, and the only one that reaches every key
                dk, dv = dk_part, dv_part
            else:
                dk[:, :, :end].add_(dk_part)  # torch would multiply into a slice matrix by matrix
                dv[:, :, :end].add_(dv_part)
        projected = gradient.new_empty(heads + 2 * kv_heads, dim, batch, length)
        out = projected.transpose(1, 2)  # [q, k and v heads, B, dim, T]
        _turn(dq.view(heads, batch, dim, length), cos, -sin, out[:heads])
        _turn(_gather(dk, kv_heads, batch), cos, -sin, out[heads : heads + kv_heads])
        out[heads + kv_heads :] = _gather(dv, kv_heads, batch)
        flat = projected.view(-1, batch * length)
        dx = (flat.T @ weight).view(batch, length, -1) if ctx.needs_input_grad[0] else None
        dwq, dwk, dwv = (flat @ tokens).split([heads * dim, kv_heads * dim, kv_heads * dim])
        return dx, dwq.mul_(dim**-0.5), dwk, dwv, None, None


def blocks(length: int) -> list[tuple[int, int]]:
    """First query and end of each block, the last block first."""
    return [(start, min(start + BLOCK, length)) for start in reversed(range(0, length, BLOCK))]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """RoPE applied to x [heads, B, dim, T] by tables [dim, T]; with the sign of `sin` changed, its inverse."""
    half = x.shape[-2] // 2
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    torch.mul(x, cos, out=out)
    out[..., :half, :].addcmul_(x[..., half:, :], sin[:half])
    out[..., half:, :].addcmul_(x[..., :half, :], sin[half:])
    return out


def _spread(x: Tensor, heads: int) -> Tensor:
    """[heads · B, dim, T] of x [kv_heads, B, dim, T]: every key/value head once for each of its query heads."""
    return x.repeat_interleave(heads // x.shape[0], 0).flatten(0, 1) if x.shape[0] < heads else x.flatten(0, 1)


def _gather(x: Tensor, kv_heads: int, batch: int) -> Tensor:
    """The sum over its query heads of every key/value head, [kv_heads, B, dim, T] of x [heads · B, dim, T]."""
    x = x.view(kv_heads, -1, batch, *x.shape[1:])
    return x.sum(1) if x.shape[1] > 1 else x[:, 0]
