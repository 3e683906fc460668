"""Results of `intervene` made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DOMAINS = ("code", "prose")
Value = float | tuple[float, float] | None  # of one layer: in both domains, in each, or no such edit


def result_of(
    damage: Mapping[str, Sequence[Value]],
    roles: Mapping[int, str] | None = None,
    half: float | None = 0.01,
    breadth: Mapping[str, Sequence[float]] | None = None,
    ffn: Sequence[int | None] | None = None,
    writes: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """A result with these damages of each layer under each edit, and intervals of ± `half`.

    `breadth`: edit → that of each layer in both domains. `ffn`: parameters of each layer's FFN. `writes`: relative
    writes; else they rank the layers as the first edit's damages do.
    """
    depth = len(next(iter(damage.values())))
    first = [np.mean(value) if value is not None else None for value in next(iter(damage.values()))]
    layers: list[dict[str, Any]] = []
    for layer in range(depth):
        of_edits: dict[str, Any] = {}
        for edit, values in damage.items():
            value = values[layer]
            of_edits[edit] = None
            if value is not None:
                means = value if isinstance(value, tuple) else (value, value)
                wide = 0.5 if breadth is None or edit not in breadth else breadth[edit][layer]
                of_edits[edit] = {
                    domain: {
                        "mean": mean, "low": None if half is None else mean - half,
                        "high": None if half is None else mean + half, "kl": 0.0, "breadth": wide, "lengthening": 1.0,
                    }
                    for domain, mean in zip(DOMAINS, means, strict=True)
                }  # fmt: skip
        layers.append(
            {
                "layer": layer,
                "role": (roles or {}).get(layer, "none"),
                "margin": 0.0,
                "relative_write": first[layer] if writes is None else writes[layer],
                "block_influence": 0.1,
                "ffn_parameters": 100 if ffn is None else ffn[layer],
                "damage": of_edits,
            }
        )
    return {
        "schema": 2, "source": "models/one", "family": "llama", "step": None, "unit": "nats/token",
        "edits": list(damage), "text": "digest", "documents": dict.fromkeys(DOMAINS, 8),
        "tokens": dict.fromkeys(DOMAINS, 80), "intact": dict.fromkeys(DOMAINS, 3.0), "layers": layers,
    }  # fmt: skip
