"""The cross-entropy of a linear head, without the logits of all tokens at once.

torch's own chunked `linear_cross_entropy` (2.13) returns the loss of bf16 inputs in bf16, three digits, and adds up the
table's gradient in bf16; here both are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

AT_ONCE = 2**24  # logits that fit beside any model (64 MB): fewer than these are not split

# logits [n, V], targets [n], weights [n] → losses [n] in nats, and the gradient of Σ weight·loss by the logits
Softmax = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def softmax_gradient(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The losses [n] of `logits` [n, V], and the gradient of Σ weight·loss by the logits, in their precision.

    All arithmetic is in float32 at least. `torch.compile` makes it one pass over the logits to read and one to write.
    """
    logs = torch.log_softmax(logits, -1, dtype=_wide(logits.dtype))
    losses = -logs.gather(1, targets[:, None]).squeeze(1)
    slopes = logs.exp_()
    slopes.add_(torch.arange(logits.shape[1], device=logits.device) == targets[:, None], alpha=-1)
    return losses, slopes.mul_(weights[:, None]).to(logits.dtype)


def head_loss(
    hidden: Tensor, table: Tensor, targets: Tensor, reduction: str = "mean", softmax: Softmax = softmax_gradient
) -> Tensor:
    """Cross-entropy in nats of the logits `hidden @ table.T`: its mean, or with reduction="none" one loss per target.

    `hidden` is [..., d], `table` [V, d], `targets` [...] rows of the table. Beyond `AT_ONCE` logits, chunks of about
    4·d tokens are computed one after the other, each with its gradient, so that a chunk's logits take four times the
    table's memory.
    """
    flat, labels = hidden.flatten(0, -2), targets.flatten()
    rows = chunk(len(flat), *table.shape)
    if rows is None:
        logits = F.linear(flat, table)
        losses = F.cross_entropy(logits.to(_wide(logits.dtype)), labels, reduction=reduction)
    else:
        losses = _chunked(flat, table, labels, rows, softmax, mean=reduction == "mean")
    return losses.view(targets.shape) if reduction == "none" else losses


def chunk(tokens: int, vocab: int, width: int) -> int | None:
    """The tokens of a chunk; None where all logits are computed at once. All are equally long, but for the last."""
    if tokens * vocab <= AT_ONCE:
        return None
    chunks = -(-tokens // max(4 * width, AT_ONCE // vocab))
    return -(-tokens // chunks)


def _chunked(hidden: Tensor, table: Tensor, targets: Tensor, rows: int, softmax: Softmax, *, mean: bool) -> Tensor:
    """The losses [n], or their mean, of `hidden` [n, d], from chunks of `rows` tokens."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else table.dtype
    loss = _MeanLoss if mean and torch.is_grad_enabled() else _Losses
    losses: Tensor = loss.apply(hidden, table, targets, _Head(rows, dtype, softmax))
    return losses.mean() if mean else losses


class _Head:
    """The chunked computation: tokens of a chunk, precision of the matrix products, softmax."""

    def __init__(self, rows: int, dtype: torch.dtype, softmax: Softmax) -> None:
        self.rows, self.dtype, self.softmax = rows, dtype, softmax

    def losses(self, hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        """The losses [n]."""
        narrow, parts = table.to(self.dtype), zip(hidden.split(self.rows), targets.split(self.rows), strict=True)
        wide = _wide(self.dtype)
        logits = ((F.linear(part.to(self.dtype), narrow), labels) for part, labels in parts)
        return torch.cat([F.cross_entropy(each.to(wide), labels, reduction="none") for each, labels in logits])

    def gradients(
        self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The losses [n], and the gradients of Σ weight·loss by `hidden` and by `table`, those that are needed."""
        narrow = table.to(self.dtype)
        by_table = torch.zeros_like(table, memory_format=torch.contiguous_format) if needs[1] else None
        losses, by_hidden = [], []
        for part, labels, weight in zip(*(x.split(self.rows) for x in (hidden, targets, weights)), strict=True):
            part = part.to(self.dtype)
            loss, slopes = self.softmax(F.linear(part, narrow), labels, weight)
            losses.append(loss)
            if needs[0]:
                by_hidden.append(slopes @ narrow)
            if by_table is not None:
                by_table += slopes.T @ part
            del slopes  # before the next chunk's logits
        return torch.cat(losses), torch.cat(by_hidden) if needs[0] else None, by_table


class _MeanLoss(torch.autograd.Function):
    """The mean loss; its gradients are made with it, so that no logits are computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, head: _Head) -> Tensor:
        weights = torch.full(targets.shape, 1 / len(targets), dtype=_wide(head.dtype), device=targets.device)
        losses, *gradients = head.gradients(hidden, table, targets, weights, ctx.needs_input_grad[:2])
        ctx.save_for_backward(*gradients)
        ctx.dtype = hidden.dtype
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_table = ctx.saved_tensors
        by_hidden = None if by_hidden is None else by_hidden.to(ctx.dtype) * slope
        return by_hidden, None if by_table is None else by_table * slope, None, None


class _Losses(torch.autograd.Function):
    """The losses [n]; the backward pass computes the logits again, since each loss has its own slope."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, head: _Head) -> Tensor:
        ctx.save_for_backward(hidden, table, targets)
        ctx.head = head
        return head.losses(hidden, table, targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden, table, targets = ctx.saved_tensors
        _, by_hidden, by_table = ctx.head.gradients(hidden, table, targets, slopes, ctx.needs_input_grad[:2])
        return None if by_hidden is None else by_hidden.to(hidden.dtype), by_table, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
