"""Measures of the stream: of the activation probe, and for writes and alignment else of a stream of random tokens."""

from __future__ import annotations

import math

from orchestrator.forensics.measures.entry import Function, Value, entry, ratio
from orchestrator.forensics.measures.probe import MEASURES as PROBED
from orchestrator.forensics.measures.statistics import LayerStatistics


def activation(name: str) -> Function:
    """The measure that the probe takes of the running model; without a probe, of the stream of random tokens."""
    return lambda layer: layer.activations.get(name, layer.streamed.get(name))


for _name in PROBED:
    if _name != "stream_norm":  # `stream_rms` is shown
        entry(_name, "A")(activation(_name))


@entry("stream_rms", "A")
def stream_rms(layer: LayerStatistics) -> Value:
    """Mean norm of the stream before the layer, over the root of the coordinates that the layer reads and writes."""
    norm = activation("stream_norm")(layer)
    return None if norm is None else norm / math.sqrt(layer.width)


@entry("write_share", "A")
def write_share(layer: LayerStatistics) -> Value:
    """Attention's share of what the two branches write, by their relative writes."""
    attention, ffn = (activation(name)(layer) for name in ("attention_write", "ffn_write"))
    return None if attention is None or ffn is None else ratio(attention, attention + ffn)
