"""The optimizer's step, one scale for each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sidecar.channels.channel import Arithmetic, Channel, alike, inner_products
from sidecar.sharded import local_shard, shard_like
from sidecar.units import layer_in, make_units

TINIEST = 1.4e-45  # float32's smallest number: a second moment below it is 0


class LrScaleChannel(Channel):
    """The optimizer's step of every layer, scaled: `w ← w + m·Δw`. Weight decay is not part of it.

    Keeps one copy of the layers' parameters; two foreach calls per step. For the slope it keeps a second copy, with
    two more calls: the sum of the scaled steps since the last `set`, without the response of later gradients and
    weight decay.
    """

    name = "lr_scale"
    bounds = (0.5, 2.0)

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        layers: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
        for name, param in model.named_parameters():
            if param.requires_grad and (place := layer_in(name)):
                layers.setdefault(place[:2], []).append((name, param))
        self.units = make_units(
            (prefix, prefix.rpartition(".")[0] or "layer", layer, sum(p.numel() for _, p in members))
            for (prefix, layer), members in layers.items()
        )
        self._members = [[name for name, _ in members] for members in layers.values()]
        self._groups = [[param for _, param in members] for members in layers.values()]
        self._params = [param for group in self._groups for param in group]
        self._before: list[Tensor] = []  # the parameters before the optimizer's step
        self._moved: list[Tensor] = []  # sum of the steps since the last `set`; empty where no slope is needed
        self._multipliers = [1.0] * len(self.units)

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        lr, eps, lr_max = arithmetic.lr, arithmetic.eps, arithmetic.lr_max
        if not lr * largest <= lr_max:
            raise ValueError(
                f"sidecar channel 'lr_scale' may reach a learning rate of {lr * largest:.3g} (lr·m = {lr:g} · "
                f"{largest:.4g}) and its bound is lr_max={lr_max:g}: lower the upper end of bounds.lr_scale or lr, "
                "or raise lr_max."
            )
        unseen = math.sqrt(TINIEST / (1 - arithmetic.beta2))  # the largest gradient that leaves no second moment
        stuck = lr * largest * unseen / eps if eps > 0 else math.inf
        if not stuck <= lr_max:
            raise ValueError(
                f"sidecar channel 'lr_scale' may move a stuck parameter by {stuck:.3g} in a step: where the second "
                f"moment underflows, Adam divides by ε={eps:g} alone (lr·m·{unseen:.2g}/ε), and the bound is "
                f"lr_max={lr_max:g}: raise eps or lower the upper end of bounds.lr_scale."
            )

    def set(self, multipliers: Sequence[float]) -> None:
        self._multipliers = list(multipliers)
        if self._moved:
            self.follow()

    def tensors(self) -> list[Tensor]:
        return self._params

    def follow(self) -> None:
        self._moved = [torch.zeros_like(param) for param in self._params]

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        inner = -inner_products(gradients, self._moved)
        return torch.stack([part.sum() for part in inner.split([len(group) for group in self._groups])])

    def memory(self) -> dict[str, Tensor]:
        names = (name for members in self._members for name in members)
        return dict(zip(names, self._moved, strict=False))

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        names = (name for members in self._members for name in members)
        for name, moved in zip(names, self._moved, strict=False):
            moved.copy_(shard_like(memory[name], moved))

    def weights(self) -> list[list[str]]:
        return self._members

    @torch.no_grad()
    def before_update(self, lr: float) -> None:
        params = list(map(local_shard, self._params))
        if not self._before or not all(map(alike, self._before, params)):
            self._before = list(map(torch.empty_like, params))
        torch._foreach_copy_(self._before, params)

    @torch.no_grad()
    def after_update(self) -> None:
        back = [1 - m for m, group in zip(self._multipliers, self._groups, strict=True) for _ in group]
        params = list(map(local_shard, self._params))
        torch._foreach_lerp_(params, self._before, back)  # bit for bit the step itself where m = 1
        if rows := [
            row for row in zip(map(local_shard, self._moved), params, self._before, strict=False) if alike(*row)
        ]:
            moved, now, before = map(list, zip(*rows, strict=True))
            torch._foreach_add_(moved, now)
            torch._foreach_sub_(moved, before)
