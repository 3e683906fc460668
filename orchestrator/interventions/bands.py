"""Early, middle and late layers by what the logit lens shows (SCIENCE §9.1)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

DOCUMENT = (0.2, 0.7)  # shares of the depth at which the Layer Structure document has the middle begin and end


@dataclass(frozen=True)
class Bands:
    """The first layers of the middle and of the late band; the number of layers where a band is empty."""

    middle: int
    late: int
    layers: int

    @property
    def shares(self) -> tuple[float, float]:
        """The same as shares of the depth."""
        return self.middle / self.layers, self.late / self.layers

    def of(self, layer: int) -> str:
        """The band of a layer."""
        return "early" if layer < min(self.middle, self.late) else "middle" if layer < self.late else "late"


def bands(divergences: Sequence[float], settled: Sequence[int]) -> Bands:
    """The bands of L layers.

    `divergences`: mean KL(model ‖ lens) over positions at the L + 1 depths, the embedding's first. `settled`: for each
    position, the first depth from which on the lens has the model's own prediction in front. The middle begins with the
    layer after which the divergence is, and stays, at most half of the most that any layer leaves; the late band begins
    with the layer after which half of the positions are settled.
    """
    layers = len(divergences) - 1
    half = layers + 1
    while half > 0 and divergences[half - 1] <= max(divergences[1:]) / 2:
        half -= 1
    stands = statistics.median_high(settled)
    return Bands(max(0, half - 1), max(0, stands - 1), layers)
