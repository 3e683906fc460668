"""The places that each head attends to from the last one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from orchestrator.forensics.measures.probe import attention_patterns
from orchestrator.interventions.subject import Subject

LONGEST = 1024  # tokens; of longer texts the patterns of all layers, heads · T² numbers each, would fill the memory


def attended(subject: Subject, tokens: Tensor) -> Sequence[Tensor | None]:
    """Per layer, the attention of its heads from the last of `tokens` [T], [heads, T]; None where it is not told."""
    if len(tokens) > LONGEST:
        return [None] * len(subject.layers)
    patterns = attention_patterns(subject.model, subject.layers, tokens[None])
    rows = [None if of is None or of.shape[2:] != (len(tokens),) * 2 else of[0, :, -1] for of in patterns]
    return rows if len(rows) == len(subject.layers) else [None] * len(subject.layers)
