"""Tensors whose spectral norm has left its peers behind (SCIENCE §5; the paper, §8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.forensics.anatomy import KINDS

WARN = 10.0
CRITICAL = 30.0


@dataclass(frozen=True)
class Finding:
    """One tensor out of proportion."""

    tensor: str
    ratio: float  # spectral norm over the median of the same kind in the other layers
    severity: str  # "warn" or "critical"


def findings(rows: Sequence[Mapping[str, float | None]], names: Sequence[Mapping[str, str]]) -> list[Finding]:
    """Every tensor at or beyond `WARN` times its peers, worst first.

    `rows`: per layer, its measures; `names`: per layer, kind → tensor name. A model of one layer has no
    peers, and peers whose median is zero give no scale: neither yields findings.
    """
    found = []
    for kind in KINDS:
        norms = np.array([row[f"spectral_norm.{kind}"] for row in rows], dtype=np.float64)
        for layer, norm in enumerate(norms):
            peers = np.delete(norms, layer)
            median = float(np.median(peers)) if len(peers) else 0.0
            ratio = float(norm) / median if median else 0.0
            if ratio >= WARN:
                found.append(Finding(names[layer][kind], ratio, "critical" if ratio >= CRITICAL else "warn"))
    return sorted(found, key=lambda finding: -finding.ratio)
