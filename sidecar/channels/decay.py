"""Weight decay, with a multiplier for each matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidecar.channels.channel import Arithmetic, TracedChannel, alike, inner_products
from sidecar.channels.decays import DECAYS, Row
from sidecar.sharded import local_shard
from sidecar.units import make_units, place_of

DECAY_LIMIT = 0.1  # largest share of a weight that one step may remove


class DecayChannel(TracedChannel):
    """Decoupled weight decay of each weight matrix: `w ← (1 − s)·w` with `s = lr·λ·m`, in one of the ways of `DECAYS`.

    Every trained parameter of two or more dimensions decays. Units are the matrices: those of numbered layers, the
    embeddings (kind `embedding`) and the others outside the layers (kind `head`).

    The trace is `E ← (1 − s)·E + s·w`, entry by entry with the s that the weight decays by: to first order, and
    without the response of later gradients, what the weight would have gained since the last `set` had ln m been one
    unit less. The weight itself could not replace it: before a norm its scale has no effect, but the scale of its older
    part relative to its newer part has one.
    """

    name = "decay"
    bounds = (0.1, 10.0)

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        self.weight_decay, self._decay = arithmetic.weight_decay, DECAYS[arithmetic.decay]()
        decayed = [(name, param) for name, param in model.named_parameters() if param.ndim >= 2 and param.requires_grad]
        units = [(name, param) for name, param in decayed if param.ndim == 2]
        embeddings = embedding_weights(model)
        self.units = make_units(
            (name, *place_of(name, name in embeddings), param.numel(), param.shape[1]) for name, param in units
        )
        self._act_on([[(name, param)] for name, param in units])
        governed = {name for name, _ in units}
        others = [(name, param) for name, param in decayed if name not in governed]
        self._others: list[Tensor] = [param for _, param in others]
        self._factors = [arithmetic.lr_factors.get(name, 1.0) for name, _ in [*units, *others]]  # of the learning rate

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        share = arithmetic.highest_lr * arithmetic.weight_decay * largest
        if not share < DECAY_LIMIT:
            raise ValueError(
                f"sidecar channel 'decay' may take {share:.3g} of a weight per step (lr·λ·m = "
                f"{arithmetic.highest_lr:g} · {arithmetic.weight_decay:g} · {largest:.4g}) and its bound is "
                f"{DECAY_LIMIT}: lower the upper end of bounds.decay, weight_decay or lr."
            )

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        return inner_products(gradients, self._traces)

    @torch.no_grad()
    def before_update(self, lr: float) -> None:
        shrink = lr * self.weight_decay
        weights, others = [*self._params, *self._others], len(self._others)
        traces: list[Tensor | None] = [*self._traces, *[None] * (len(weights) - len(self._traces))]
        rows = zip(weights, traces, self._factors, [*self._multipliers, *[1.0] * others], strict=True)
        alive = [row for row in rows if shrink and row[0].numel()]
        self._decay.before([Row(local_shard(w), shrink * f * m, _trace_of(w, trace)) for w, trace, f, m in alive])

    @torch.no_grad()
    def after_update(self) -> None:
        self._decay.after()


def embedding_weights(model: nn.Module) -> set[str]:
    """Names of the embeddings' matrices."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}


def _trace_of(weight: Tensor, trace: Tensor | None) -> Tensor | None:
    """The trace's shard; None where the weight is not the one that it was made for."""
    return local_shard(trace) if trace is not None and alike(trace, weight) else None
