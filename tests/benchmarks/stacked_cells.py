"""Several small cells trained at once, their tensors stacked along a leading axis."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from models.transformer import Decoder
from orchestrator.config.schema import OptimConfig


class StackedCells:
    """K decoders of one spec, and their optimizer. Each trains as it would alone: none sees another's values."""

    def __init__(self, models: Sequence[Decoder], optim: OptimConfig) -> None:
        self.optim = optim
        self.parameters, _ = stack_module_state(list(models))  # type: ignore[arg-type]  # name → [K, ...]
        self.skeleton = copy.deepcopy(models[0]).to("meta")  # the function without its values
        betas = (optim.beta1, optim.beta2)
        self.adam = torch.optim.Adam(self.parameters.values(), lr=optim.lr, betas=betas, eps=optim.eps, fused=True)

    def losses(self, rows: Tensor) -> Tensor:
        """The mean loss [K] of each cell on its own `rows` [K, B, T+1]."""

        def loss(parameters: dict[str, Tensor], mine: Tensor) -> Tensor:
            return functional_call(self.skeleton, parameters, (mine[:, :-1], mine[:, 1:]))

        return vmap(loss)(self.parameters, rows)

    def update(self, rows: Tensor) -> Tensor:
        """One step of every cell, clipped by its own gradient's norm; the losses [K] before it."""
        self.adam.zero_grad(set_to_none=True)
        losses = self.losses(rows)
        losses.sum().backward()
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)  # [K]
        scale = (self.optim.clip / (norms + 1e-6)).clamp(max=1.0)
        decay = 1 - self.optim.lr * self.optim.weight_decay
        with torch.no_grad():
            for gradient in gradients:
                gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
            torch._foreach_mul_([p for p in self.parameters.values() if p.ndim > 2], decay)
        self.adam.step()
        return losses.detach()
