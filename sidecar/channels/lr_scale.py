"""The optimizer's step, with a multiplier for each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidecar.channels.channel import Arithmetic, TracedChannel, alike, inner_products
from sidecar.sharded import local_shard
from sidecar.units import layer_in, make_units

TINIEST = 1.4e-45  # float32's smallest number: a second moment below it is 0


class LrScaleChannel(TracedChannel):
    """Scales the optimizer's step of every layer, without its weight decay: `w ← w + m·Δw`.

    Keeps one copy of the layers' parameters; two foreach calls per step. The trace, kept while followed with two more
    calls, is the sum of the scaled steps since the last `set`: it leaves out how later gradients and weight decay
    respond.
    """

    name = "lr_scale"
    bounds = (0.5, 2.0)

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        layers: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
        for name, param in model.named_parameters():
            if param.requires_grad and (place := layer_in(name)):
                layers.setdefault(place[:2], []).append((name, param))
        self.units = make_units(
            (prefix, prefix.rpartition(".")[0] or "layer", layer, sum(p.numel() for _, p in members), 1)
            for (prefix, layer), members in layers.items()
        )
        self._act_on(list(layers.values()))
        self._before: list[Tensor] = []  # the parameters before the optimizer's step

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        lr, eps, lr_max = arithmetic.highest_lr, arithmetic.eps, arithmetic.lr_max
        if not lr * largest <= lr_max:
            raise ValueError(
                f"sidecar channel 'lr_scale' may reach a learning rate of {lr * largest:.3g} (lr·m = {lr:g} · "
                f"{largest:.4g}) and its bound is lr_max={lr_max:g}: lower the upper end of bounds.lr_scale or lr, "
                "or raise lr_max."
            )
        unseen = math.sqrt(TINIEST / (1 - arithmetic.beta2))  # largest gradient whose second moment is 0
        stuck = lr * largest * unseen / eps if eps > 0 else math.inf
        if not stuck <= lr_max:
            raise ValueError(
                f"sidecar channel 'lr_scale' may move a stuck parameter by {stuck:.3g} in a step, and its bound is "
                f"lr_max={lr_max:g} (where the second moment underflows, Adam divides by ε={eps:g} alone: "
                f"lr·m·{unseen:.2g}/ε): raise eps or lower the upper end of bounds.lr_scale."
            )

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        inner = -inner_products(gradients, self._traces)
        return torch.stack([part.sum() for part in inner.split([len(names) for names in self._names])])

    @torch.no_grad()
    def before_update(self, lr: float) -> None:
        params = list(map(local_shard, self._params))
        if not self._before or not all(map(alike, self._before, params)):
            self._before = list(map(torch.empty_like, params))
        torch._foreach_copy_(self._before, params)

    @torch.no_grad()
    def after_update(self) -> None:
        back = [1 - m for m, names in zip(self._multipliers, self._names, strict=True) for _ in names]
        params = list(map(local_shard, self._params))
        torch._foreach_lerp_(params, self._before, back)  # bit for bit the step itself where m = 1
        rows = zip(map(local_shard, self._traces), params, self._before, strict=False)
        if kept := [row for row in rows if alike(*row)]:
            traces, now, before = map(list, zip(*kept, strict=True))
            torch._foreach_add_(traces, now)
            torch._foreach_sub_(traces, before)
