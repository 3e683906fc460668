"""The table of measures. Their functions are in `entries`, one file for each noun.

A function takes a layer's statistics and, where its name has a `*`, one of the kinds q, k, v, o, gate, up, down. It
returns None where its need is missing or the value is undefined (a zero matrix has no effective rank).
"""

from __future__ import annotations

import math
from collections.abc import Collection

from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.measures.entries import (
    composition,
    energy,
    heads,
    matrices,
    norms,
    positions,
    stream,
    training,
)
from orchestrator.forensics.measures.entry import BRANCHES, ENTRIES, Measure, Value
from orchestrator.forensics.measures.statistics import LayerStatistics

MODULES = (matrices, positions, heads, composition, energy, norms, training, stream)
# Name → measure, in the order of a reading's JSON.
MEASURES: dict[str, Measure] = {name: of for module in MODULES for name, of in ENTRIES[module.__name__].items()}


def measure(layer: LayerStatistics, only: Collection[str] | None = None) -> dict[str, Value]:
    """Every measure of a layer, or those named, one for each kind where a name has a `*`; None where it is absent."""
    values: dict[str, Value] = {}
    for pattern, found in MEASURES.items():
        calls = {pattern.replace("*", kind): (layer, kind) for kind in KINDS} if "*" in pattern else {pattern: (layer,)}
        lacks = any(BRANCHES[branch] not in layer.shapes for branch in found.branches)
        for name, call in calls.items():
            if only is None or name in only:
                values[name] = None if lacks else found.function(*call)
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
