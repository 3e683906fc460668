"""RMSNorm in float32, with a backward pass of our own on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / rms(x) · γ, computed in float32 whatever the precision of x (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [..., width] → [..., width]
        plain = x.dtype == self.weight.dtype == torch.float32 and x.device.type == "cpu"
        if plain and not torch.compiler.is_compiling():
            normed: Tensor = PlainRMSNorm.apply(x, self.weight, self.eps)
            return normed
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).type_as(x)


class PlainRMSNorm(torch.autograd.Function):
    """RMSNorm of a float32 tensor [..., width]; torch differentiates its own in more passes on a CPU.

    The transforms of `torch.func` and a second derivative need torch's own (float64 has it).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(rows.shape[1]).add_(eps).rsqrt_()
        normed = rows * scale  # [N, width]
        ctx.save_for_backward(normed, scale, weight)
        return (normed * weight).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, weight = ctx.saved_tensors
        g = gradient.reshape(normed.shape)
        product = g * normed
        along = (product * weight).sum(-1, keepdim=True).div_(-weight.shape[0])  # the gradient's share along x, [N, 1]
        dx = (g * weight).addcmul_(normed, along).mul_(scale)
        return dx.view(gradient.shape), product.sum(0), None
