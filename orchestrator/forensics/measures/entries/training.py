"""Measures of the optimizer's state and of gradients."""

from __future__ import annotations

import math

from orchestrator.forensics.measures.entry import Value, entry
from orchestrator.forensics.measures.statistics import LayerStatistics


@entry("momentum_alignment.*", "O")
def momentum_alignment(layer: LayerStatistics, kind: str) -> Value:
    """cos(−exp_avg, w), positive where the update grows the weight.

    The mean over the trace's steps; without a trace, of the checkpoint's own step.
    """
    return layer.alignment.get(kind)


@entry("momentum_alignment.*_chance", "O")
def momentum_alignment_chance(layer: LayerStatistics, kind: str) -> Value:
    """1/√n, the standard deviation of that cosine between random directions."""
    return 1 / math.sqrt(math.prod(layer.shapes[kind])) if kind in layer.alignment else None


@entry("gradient_alignment.*", "G")
def gradient_alignment(layer: LayerStatistics, kind: str) -> Value:
    """cos(−gradient, w) of the next-token loss on a text, positive where descent grows the weight.

    The mean over a few backward passes on the finished checkpoint, not the optimizer's own momentum.
    """
    return layer.gradients.get(kind)


@entry("gradient_alignment.*_chance", "G")
def gradient_alignment_chance(layer: LayerStatistics, kind: str) -> Value:
    """1/√n, the standard deviation of that cosine between random directions."""
    return 1 / math.sqrt(math.prod(layer.shapes[kind])) if kind in layer.gradients else None


@entry("stuck_fraction", "O")
def stuck_fraction(layer: LayerStatistics) -> Value:
    """Share of the matrices' entries with |m̂| and √v̂ both within 1 % of their kind's median."""
    return layer.stuck
