"""What the sidecar may press on. A channel is one class and one line in `CHANNELS` (SCIENCE §6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

LAYER = re.compile(r"(?:^|\.)(\d+)\.")  # the first number in a parameter's name is its layer
DECAY_LIMIT = 0.1  # largest share of a weight that one step may take away


@dataclass(frozen=True)
class Unit:
    """One thing a channel holds a multiplier for."""

    name: str
    kind: str  # what units of different layers have in common, e.g. mlp.down_proj.weight
    depth: float  # 0 at the first layer, 1 at the last
    size: int  # parameters governed: the unit's share in the parameter-weighted mean


class Channel(Protocol):
    """A named list of units and the check of how far their multipliers may go."""

    name: str
    units: list[Unit]

    def check(self, largest: float) -> None:
        """Raise `ValueError` where a multiplier of `largest` would not be safe."""


class DecayChannel:
    """Decoupled weight decay of each weight matrix: `w ← (1 − lr·λ·m)·w`.

    Units are the two-dimensional parameters of numbered layers; biases, norms and embeddings keep m = 1.
    `lr` is the highest learning rate of the run and `weight_decay` is λ.
    """

    name = "decay"

    def __init__(self, params: Mapping[str, Tensor], lr: float, weight_decay: float) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        places = [
            (name, place, param.numel())
            for name, param in params.items()
            if param.ndim == 2 and (place := LAYER.search(name))
        ]
        if not places:
            raise ValueError(
                f"sidecar channel 'decay' found no weight matrix in a numbered layer among {len(params)} "
                "parameters: pass names like 'layers.0.mlp.weight', as named_parameters() gives them."
            )
        last = max(int(place[1]) for _, place, _ in places)
        self.units = [
            Unit(name, name[place.end() :], int(place[1]) / max(last, 1), size) for name, place, size in places
        ]

    def check(self, largest: float) -> None:
        """Raise `ValueError` where a multiplier of `largest` takes a tenth of a weight or more per step."""
        share = self.lr * self.weight_decay * largest
        if not share < DECAY_LIMIT:
            raise ValueError(
                f"sidecar channel 'decay' may take {share:.3g} of a weight per step (lr·λ·m = {self.lr:g} · "
                f"{self.weight_decay:g} · {largest:.4g}) and its bound is {DECAY_LIMIT}: lower log_bound, "
                "weight_decay or lr."
            )


CHANNELS: dict[str, Callable[[Mapping[str, Tensor], float, float], Channel]] = {
    DecayChannel.name: DecayChannel,
}
