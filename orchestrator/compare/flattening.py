"""How much flatter one arm's layers are than the other's: their CVs of FFN co-magnitude side by side (SCIENCE §4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from orchestrator.compare.pairs import Pair


def flattening(pair: Pair) -> list[dict[str, Any]]:
    """Per layer, at every step both cells were read: the arms side by side. No row between unequal depths."""
    rows = []
    for step in pair.common_steps:
        a, b = pair.a.readings[step]["layers"], pair.b.readings[step]["layers"]
        if len(a) != len(b):
            continue
        for left, right in zip(a, b, strict=True):
            values: dict[str, float | None] = {}
            for name, measure in (
                ("cv", "cv"),
                ("saturated", "saturated"),
                ("effective_rank_o", "effective_rank.o"),
                ("attention_share", "attention_share"),
            ):
                values[f"{name}_a"], values[f"{name}_b"] = (
                    left["measures"].get(measure),
                    right["measures"].get(measure),
                )
            ratio = values["cv_a"] / values["cv_b"] if values["cv_a"] is not None and values["cv_b"] else None
            rows.append({"seed": pair.seed, "step": step, "layer": left["layer"], "flattening": ratio, **values})
    return rows


def newest(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The rows of `arm` at each pair's newest common reading, where the flattening is known."""
    own = table[table["arm"] == arm] if "arm" in table else table
    at_end = own[own["step"] == own.groupby("seed")["step"].transform("max")]
    return at_end[at_end["flattening"] > 0]


def mean_flattening(table: pd.DataFrame, arm: str) -> dict[int, float]:
    """Layer → CV a / CV b, geometric mean over the pairs that have it."""
    known = newest(table, arm)
    means = np.log(known["flattening"]).groupby(known["layer"]).mean()
    return dict(zip(means.index.tolist(), np.exp(means).tolist(), strict=True))
