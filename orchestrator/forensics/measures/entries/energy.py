"""Shares of energy between branches and between matrices."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from orchestrator.forensics.architecture.kinds import ATTENTION
from orchestrator.forensics.measures.entry import Value, entry, ratio
from orchestrator.forensics.measures.statistics import LayerStatistics


@entry("attention_share", of="attention ffn")
def attention_share(layer: LayerStatistics) -> Value:
    """Squared entries of q,k,v,o over those of all matrices."""
    attention = sum(layer.energy[kind] for kind in ATTENTION)
    return ratio(attention, sum(layer.energy.values()))


@entry("balance", of="attention ffn")
def balance(layer: LayerStatistics) -> Value:
    """−|attention_share − 0.4|: 0 where the paper sees hubs."""
    share = attention_share(layer)
    return None if share is None else -abs(share - 0.4)


@entry("branch_balance", of="attention ffn")
def branch_balance(layer: LayerStatistics) -> Value:
    """−|share − 0.4| of attention in the two branches' typical squared entries.

    Typical is the geometric mean over a branch's matrices, and for the FFN the median of it over the positions: then
    an exchange of scale between a branch's matrices, which leaves the function as it is, leaves this too, and it does
    not restate the shape.
    """
    squares = [_mean_square(layer, [kind]) for kind in ATTENTION if kind in layer.energy]
    attention = math.prod(squares) ** (1 / len(squares)) if squares else 0.0
    ffn = float(np.median(np.square(layer.gain) ** (1 / len(layer.position_energy)))) / layer.width
    share = ratio(attention, attention + ffn)
    return None if share is None else -abs(share - 0.4)


@entry("write_ratio", of="ffn")
def writeratio(layer: LayerStatistics) -> Value:
    """Median over the positions of √(‖up‖·‖down‖)/‖gate‖; where there is no gate, `down_ratio`.

    `down_ratio` changes when up is multiplied and down divided by a number; this does not.
    """
    energy = layer.position_energy
    if "gate" not in energy:
        return downratio(layer)
    ratios = np.sqrt(energy["up"] * energy["down"])[energy["gate"] > 0] / energy["gate"][energy["gate"] > 0]
    return float(np.median(np.sqrt(ratios))) if len(ratios) else None


@entry("down_ratio", of="ffn")
def downratio(layer: LayerStatistics) -> Value:
    """RMS of down over the geometric mean of the RMS of gate and up, or the RMS of up."""
    into = [_mean_square(layer, [kind]) for kind in ("gate", "up") if kind in layer.energy]
    return ratio(math.sqrt(_mean_square(layer, ["down"])), math.prod(into) ** (0.5 / len(into)))


def _mean_square(layer: LayerStatistics, kinds: Collection[str]) -> float:
    """Mean of the squared entries of all matrices of these kinds."""
    present = [kind for kind in kinds if kind in layer.energy]
    return sum(layer.energy[kind] for kind in present) / sum(math.prod(layer.shapes[kind]) for kind in present)
