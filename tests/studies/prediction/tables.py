"""Records → one row per layer: what was measured of it before, and what changing it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

TARGETS = {  # damage that is to be predicted ← edit
    "layer": "delete",
    "attention": "delete_attention",
    "ffn": "delete_ffn",
}
# Predictions of SCIENCE §9: name → role whose score predicts, and what is predicted, a column of a layer.
WRITTEN = {
    "a passthrough's deletion costs least": ("passthrough", "−damage.layer"),
    "a hub's attention costs most": ("hub", "damage.attention"),
    "a specialist's damage sits in few tokens": ("specialist", "−breadth.layer"),
    "a specialist's damage sits in its saturated positions": ("specialist", "saturated_share"),
    "a damper's deletion lengthens the stream": ("damper", "lengthening.layer"),
}


def table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per layer of each record: group, run, seed, step, layer, then features and outcomes; absent ones are NaN.

    `seed` is the run's name without its arm: runs that share it began alike and saw the same text.
    """
    rows = []
    for record in records:
        last = len(record["layers"]) - 1
        for index, layer in enumerate(record["layers"]):
            damage = record["damage"]["layers"][index]
            own = record["own"]["layers"][index]["damage"] if record.get("own") else {}
            rows.append(
                {"group": record["group"], "run": record["run"], "seed": record["run"].split("/")[-1]}
                | {"step": record["step"], "layer": index, "depth": index / last, "edge": min(index, last - index)}
                | {"width": layer["width"], "parameter_norm": layer["parameter_norm"], "alpha": layer["alpha"]}
                | {"probe.relative_write": damage["relative_write"], "probe.block_influence": damage["block_influence"]}
                | {f"paper.{role}": score for role, score in layer["paper"].items()}
                | {f"calibrated.{role}": score for role, score in layer["calibrated"].items()}
                | layer["measures"]
                | {f"own.{name}": _mean(own.get(edit), "kl") for name, edit in TARGETS.items()}
                | _outcomes(damage["damage"])
            )
    return pd.DataFrame(rows).astype({"step": "Int64"}).convert_dtypes(convert_string=False, convert_integer=False)


def _outcomes(damage: Mapping[str, Any]) -> dict[str, float]:
    """Means over domains of what an edit did."""
    found = {}
    for name, edit in TARGETS.items():
        for key, column in (("mean", "damage"), ("breadth", "breadth"), ("lengthening", "lengthening")):
            found[f"{column}.{name}"] = _mean(damage[edit], key)
        for part, of in (("a", slice(0, None, 2)), ("b", slice(1, None, 2))):
            domains = sorted(damage[edit] or {})[of]
            found[f"damage.{name}.{part}"] = _mean({domain: damage[edit][domain] for domain in domains}, "mean")
    found["damage.repeat"] = _mean(damage.get("repeat"), "mean")
    saturated, chance, ffn = (_mean(damage.get(of), "mean") for of in ("zero_saturated", "zero_random", "delete_ffn"))
    some = _mean(damage["delete_ffn"], "low") > 0  # else there is no damage to have a share of
    found["saturated_share"] = (saturated - chance) / ffn if some else np.nan
    return found


def _mean(of_edit: Mapping[str, Mapping[str, float | None]] | None, key: str) -> float:
    values = [of_domain[key] for of_domain in (of_edit or {}).values()]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else np.nan
