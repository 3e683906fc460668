"""Weight decay, with a multiplier for each matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidecar.channels.channel import Arithmetic, TracedChannel, alike, inner_products
from sidecar.sharded import local_shard
from sidecar.units import layer_in, make_units

DECAY_LIMIT = 0.1  # largest share of a weight that one step may remove


class DecayChannel(TracedChannel):
    """Decoupled weight decay of each weight matrix: `w ← (1 − lr·λ·m)·w`, before the optimizer's step.

    Every trained parameter of two or more dimensions decays. Units are the matrices: those of numbered layers, the
    embeddings (kind `embedding`) and the others outside the layers (kind `head`). One foreach call per step, two while
    followed.

    The trace is `E ← (1 − lr·λ·m)·E + lr·λ·m·w`: to first order, and without the response of later gradients, what the
    weight would have gained since the last `set` had ln m been one unit less. The weight itself could not replace it:
    before a norm its scale has no effect, but the scale of its older part relative to its newer part has one.
    """

    name = "decay"
    bounds = (0.1, 10.0)

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        self.weight_decay = arithmetic.weight_decay
        decayed = [(name, param) for name, param in model.named_parameters() if param.ndim >= 2 and param.requires_grad]
        units = [(name, param) for name, param in decayed if param.ndim == 2]
        embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
        self.units = make_units(
            (name, *_place(name, name in embeddings), param.numel(), param.shape[1]) for name, param in units
        )
        self._act_on([[(name, param)] for name, param in units])
        governed = {name for name, _ in units}
        self._others: list[Tensor] = [param for name, param in decayed if name not in governed]

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        share = arithmetic.lr * arithmetic.weight_decay * largest
        if not share < DECAY_LIMIT:
            raise ValueError(
                f"sidecar channel 'decay' may take {share:.3g} of a weight per step (lr·λ·m = {arithmetic.lr:g} · "
                f"{arithmetic.weight_decay:g} · {largest:.4g}) and its bound is {DECAY_LIMIT}: lower the upper end of "
                "bounds.decay, weight_decay or lr."
            )

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        return inner_products(gradients, self._traces)

    @torch.no_grad()
    def before_update(self, lr: float) -> None:
        shrink = lr * self.weight_decay
        if self._traces and shrink:
            rows = zip(self._traces, self._params, self._multipliers, strict=True)
            if kept := [(local_shard(trace), local_shard(w), shrink * m) for trace, w, m in rows if alike(trace, w)]:
                torch._foreach_lerp_(*map(list, zip(*kept, strict=True)))
        factors = [1 - shrink * m for m in self._multipliers] + [1 - shrink] * len(self._others)
        alive = [(local_shard(t), f) for t, f in zip([*self._params, *self._others], factors, strict=True) if t.numel()]
        if alive and shrink:
            torch._foreach_mul_([t for t, _ in alive], [f for _, f in alive])


def _place(name: str, is_embedding: bool) -> tuple[str, int | None]:
    """The kind and the layer of a matrix."""
    if place := layer_in(name):
        return place[2], place[1]
    return "embedding" if is_embedding else "head", None
