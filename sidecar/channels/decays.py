"""The ways to decay weights around an optimizer's step: one class and one line in `DECAYS` each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Row(NamedTuple):
    """A weight and what this step may take from it. Tensors are this rank's shards."""

    weight: Tensor
    share: float  # lr·λ·m
    trace: Tensor | None  # of what the weight would have gained with less decay


class Decay(Protocol):
    """Decays weights, and their traces likewise: `E ← E + s·(w − E)` where `w ← w − s·w`."""

    def before(self, rows: Sequence[Row]) -> None:
        """Called before the optimizer's step."""

    def after(self) -> None:
        """Called after it."""


class Decoupled:
    """`w ← (1 − s)·w` before the step: torch's AdamW, bit for bit. One foreach call, two with traces."""

    def before(self, rows: Sequence[Row]) -> None:
        if traced := [row for row in rows if row.trace is not None]:
            weights, shares, traces = map(list, zip(*traced, strict=True))
            torch._foreach_lerp_(traces, weights, shares)
        if rows:
            torch._foreach_mul_([row.weight for row in rows], [1 - row.share for row in rows])

    def after(self) -> None:
        pass


class Cautious:
    """Cautious weight decay (Chen et al. 2025, arXiv 2510.12402): `w ← w − lr·u − s·1[u·w ≥ 0]·w`, elementwise.

    `u` is the optimizer's step, known once it is taken: a weight decays, by a share of what it was before, unless its
    step led away from zero. A step lost to rounding counts as none. Keeps one copy of the weights.
    """

    def __init__(self) -> None:
        self._rows: Sequence[Row] = ()
        self._copies: list[Tensor] = []  # of the weights before the step

    def before(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        weights = [row.weight for row in rows]
        if [(w.shape, w.dtype, w.device) for w in weights] != [(c.shape, c.dtype, c.device) for c in self._copies]:
            self._copies = list(map(torch.empty_like, weights))
        if weights:
            torch._foreach_copy_(self._copies, weights)

    def after(self) -> None:
        if not self._rows:
            return
        weights, before = [row.weight for row in self._rows], self._copies
        shares = torch._foreach_sub(weights, before)
        torch._foreach_sign_(shares)  # a product with the step itself could underflow
        torch._foreach_mul_(shares, before)
        torch._foreach_sign_(shares)  # 1 where the step led away from zero
        torch._foreach_clamp_min_(shares, 0)
        torch._foreach_mul_(shares, [-row.share for row in self._rows])
        torch._foreach_add_(shares, [row.share for row in self._rows])  # 0 there, s elsewhere
        for row, share, was in zip(self._rows, shares, before, strict=True):
            if row.trace is not None:
                row.trace.lerp_(was, share)
        torch._foreach_addcmul_(weights, shares, before, value=-1)


DECAYS: dict[str, type[Decay]] = {"decoupled": Decoupled, "cautious": Cautious}
