"""Tensors whose spectral norm is far above their peers' (SCIENCE §5; the paper, §8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.forensics.architecture.kinds import KINDS

WARN = 10.0
CRITICAL = 30.0


@dataclass(frozen=True)
class Finding:
    """One tensor whose spectral norm is far above its peers'."""

    tensor: str
    ratio: float  # spectral norm over the median of the same kind in the other layers
    severity: str  # "warn" or "critical"


def findings(rows: Sequence[Mapping[str, float | None]], names: Sequence[Mapping[str, str]]) -> list[Finding]:
    """Every tensor at or above `WARN` times its peers, worst first.

    `rows`: per layer, its measures; `names`: per layer, kind → tensor name. None for a model of one layer, or for
    peers whose median is zero.
    """
    found = [
        Finding(names[layer][kind], ratio, "critical" if ratio >= CRITICAL else "warn")
        for kind in KINDS
        for layer, ratio in enumerate(ratios([row[f"spectral_norm.{kind}"] for row in rows]))
        if ratio is not None and ratio >= WARN
    ]
    return sorted(found, key=lambda finding: -finding.ratio)


def ratios(norms: Sequence[float | None]) -> list[float | None]:
    """Each layer's norm over the median of the others'; null where either is unknown or the median 0."""
    values = np.array(norms, dtype=np.float64)  # [L]
    layers = values.size
    others = np.tile(values, (layers, 1))[~np.eye(layers, dtype=bool)].reshape(layers, max(0, layers - 1))
    medians = np.median(others, axis=1).tolist() if layers > 1 else [0.0] * layers
    return [float(v / m) if m > 0 and np.isfinite(v) else None for v, m in zip(values, medians, strict=True)]
