"""Records → one row per layer: what was measured of it before, and what changing it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

TARGETS = {  # damage that is to be predicted ← edit
    "layer": "delete",
    "attention": "delete_attention",
    "ffn": "delete_ffn",
}
# Predictions of SCIENCE §9: name → what predicts, and what is predicted; both are columns of a layer.
WRITTEN = {
    "a passthrough's deletion costs least": ("paper.passthrough", "−damage.layer"),
    "a hub's attention costs most": ("paper.hub", "damage.attention"),
    "a specialist's damage sits in few tokens": ("paper.specialist", "−breadth.layer"),
    "a specialist's damage sits in its saturated positions": ("paper.specialist", "saturated_share"),
    "a damper's deletion lengthens the stream": ("paper.damper", "lengthening.layer"),
}


def table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per layer of each record: group, run, step, layer, then features and outcomes; absent values are NaN."""
    rows = []
    for record in records:
        depth = len(record["layers"])
        for index, layer in enumerate(record["layers"]):
            damage = record["damage"]["layers"][index]
            rows.append(
                {"group": record["group"], "run": record["run"], "step": record["step"], "layer": index}
                | {"depth": index / (depth - 1), "width": layer["width"], "parameter_norm": layer["parameter_norm"]}
                | {"alpha": layer["alpha"]}
                | {"probe.relative_write": damage["relative_write"], "probe.block_influence": damage["block_influence"]}
                | {f"paper.{role}": score for role, score in layer["paper"].items()}
                | {f"calibrated.{role}": score for role, score in layer["calibrated"].items()}
                | layer["measures"]
                | _outcomes(damage["damage"])
            )
    return pd.DataFrame(rows).astype({"step": "Int64"}).convert_dtypes(convert_string=False, convert_integer=False)


def _outcomes(damage: dict[str, Any]) -> dict[str, float]:
    """Means over domains of what an edit did."""
    found = {}
    for name, edit in TARGETS.items():
        for key, column in (("mean", "damage"), ("breadth", "breadth"), ("lengthening", "lengthening")):
            found[f"{column}.{name}"] = _mean(damage[edit], key)
    saturated, chance, ffn = (_mean(damage[edit], "mean") for edit in ("zero_saturated", "zero_random", "delete_ffn"))
    found["saturated_share"] = (saturated - chance) / ffn if ffn else np.nan
    return found


def _mean(of_edit: dict[str, dict[str, float | None]] | None, key: str) -> float:
    values = [of_domain[key] for of_domain in (of_edit or {}).values()]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else np.nan
