"""Measures of composition with other layers."""

from __future__ import annotations

import math

from orchestrator.forensics.measures.composition import sink, source
from orchestrator.forensics.measures.entry import Value, entry
from orchestrator.forensics.measures.statistics import LayerStatistics


@entry("source_mean")
def source_mean(layer: LayerStatistics) -> Value:
    """Mean composition C(l→m) into the layers above and the head; absent in the last where no head is known."""
    return source(layer.stack.compositions, layer.index)


@entry("sink_mean")
def sink_mean(layer: LayerStatistics) -> Value:
    """Mean composition C(m→l) out of the embedding and the layers below."""
    return sink(layer.stack.compositions, layer.index)


@entry("synapse_mediator")
def synapse_mediator(layer: LayerStatistics) -> Value:
    """Geometric mean of `source_mean` and `sink_mean`; absent where either is."""
    out, into = source_mean(layer), sink_mean(layer)
    return None if out is None or into is None else math.sqrt(out * into)


@entry("composition_partners", "L")
def composition_partners(layer: LayerStatistics) -> Value:
    """Number of layers that this layer reads, or that read it, more than the spread of all pairs of layers."""
    return layer.partners.get("composition")
