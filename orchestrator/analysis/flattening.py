"""Measure flattening: the ratio of two arms' CVs of FFN co-magnitude, layer by layer (SCIENCE §4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.sign_flip import sign_patterns

MEASURES = ("cv", "saturated", "max_abs", "effective_rank.o", "attention_share")  # columns of the table, with _a and _b


def flattening(pair: Pair) -> list[dict[str, Any]]:
    """Return a row per common step and layer, both arms side by side; none between unequal depths."""
    rows = []
    for step in pair.common_steps:
        a, b = pair.a.readings[step].layers, pair.b.readings[step].layers
        for left, right in zip(a, b, strict=True) if len(a) == len(b) else ():
            values = {
                f"{measure.replace('.', '_')}_{side}": layer.measures.get(measure)
                for measure in MEASURES
                for side, layer in (("a", left), ("b", right))
            }
            ratio = values["cv_a"] / values["cv_b"] if values["cv_a"] is not None and values["cv_b"] else None
            place = {"arm": pair.arm, "seed": pair.seed, "step": step, "layer": left.layer}
            rows.append({**place, "flattening": ratio, **values})
    return rows


def at_step(table: pd.DataFrame, arm: str, step: int | None) -> pd.DataFrame:
    """Return the rows of `arm` at `step` where the flattening is known."""
    own = table[table["arm"] == arm] if "arm" in table else table
    return own[(own["step"] == step) & (own["flattening"] > 0)]


def mean_flattening(table: pd.DataFrame, arm: str, step: int | None) -> dict[int, float]:
    """Return layer → CV a / CV b at `step`, geometric mean over the pairs that have it."""
    known = at_step(table, arm, step)
    means = np.log(known["flattening"]).groupby(known["layer"]).mean()
    return dict(zip(means.index.tolist(), np.exp(means).tolist(), strict=True))


def log_ratios(table: pd.DataFrame, arm: str, step: int | None, seeds: list[int]) -> pd.DataFrame:
    """Return log(CV a / CV b), [layers, seeds], of the layers in which each of `seeds` has it."""
    known = at_step(table, arm, step)
    wide = known.assign(log=np.log(known["flattening"])).pivot(index="layer", columns="seed", values="log")
    return wide.reindex(columns=seeds).dropna()


def layer_p(ratios: pd.DataFrame) -> dict[int, float]:
    """Return layer → exact two-sided sign-flip p of its mean log ratio, corrected for the number of layers.

    Westfall and Young's step-down max-T: a layer is compared, under every pattern, with the largest mean among the
    layers whose own mean is no larger. Empty under two seeds.
    """
    layers, n = ratios.shape
    if n < 2 or not layers:
        return {}
    sums = np.abs(sign_patterns(n) @ ratios.to_numpy().T)  # [patterns, L], the first as observed
    p, largest, order = np.ones(layers), np.zeros(len(sums)), np.argsort(sums[0])
    for layer in order:
        largest = np.maximum(largest, sums[:, layer])
        p[layer] = np.mean(largest >= sums[0, layer] * (1.0 - 1e-12))
    p[order] = np.maximum.accumulate(p[order][::-1])[::-1]  # a smaller mean is never surer
    return dict(zip(ratios.index.tolist(), p.tolist(), strict=True))
