"""Spearman's correlation within models, raw and with depth partialled out, and its interval over seeds or layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats

from orchestrator.analysis.statistics import interval

LEVEL = 0.95
FEWEST = 3  # seeds for an interval


@dataclass(frozen=True)
class Rho:
    """A mean correlation and its 95 % interval, NaN where there is none; of `models`, in `defined` there is one."""

    value: float
    low: float
    high: float
    models: int
    defined: int


def spearman(x: np.ndarray, y: np.ndarray, controls: Sequence[np.ndarray] = ()) -> float:
    """ρ over the layers where both are known; with `controls`, of the ranks less their regression on the controls'.

    NaN with fewer than four layers more than controls, and where one of the two does not vary; 0 where one is nothing
    but the controls: it adds nothing to them.
    """
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 4 + len(controls) or min(np.ptp(x[known]), np.ptp(y[known])) == 0:
        return np.nan
    on = np.stack([np.ones(known.sum()), *(scipy.stats.rankdata(of[known]) for of in controls)], 1)
    a, b = (_residuals(scipy.stats.rankdata(of[known]), on) for of in (x, y))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 1e-9 * len(a) else 0.0


def _residuals(y: np.ndarray, on: np.ndarray) -> np.ndarray:
    return np.asarray(y - on @ np.linalg.lstsq(on, y, rcond=None)[0])


def of_model(layers: pd.DataFrame, predictor: str, outcome: str, controls: Sequence[str] = ()) -> float:
    """ρ over the layers of one model; a `−` before a name turns its sign."""
    return spearman(*(column(layers, name) for name in (predictor, outcome)), [column(layers, of) for of in controls])


def column(layers: pd.DataFrame, name: str) -> np.ndarray:
    """The column as numbers, its sign turned where a `−` stands before the name."""
    values = layers[name.removeprefix("−")].to_numpy(float, na_value=np.nan)
    return -values if name.startswith("−") else values


def of_group(layers: pd.DataFrame, predictor: str, outcome: str, controls: Sequence[str] = ()) -> Rho:
    """Mean ρ over the seeds of a group.

    The interval is over seeds, of which each counts with the mean over its models: arms of one seed began alike. Where
    there is one seed alone it is over the layers (`over_layers`).
    """
    found = [
        (seed, of_model(model, predictor, outcome, controls), len(model))
        for (seed, _), model in layers.groupby(["seed", "run"])
    ]
    return over_seeds(found, len(controls))


def over_seeds(found: Sequence[tuple[object, float, int]], controls: int) -> Rho:
    """The mean over models where ρ is defined, each (seed, ρ, number of layers), and from three seeds its interval."""
    known = [one for one in found if np.isfinite(one[1])]
    if not known:
        return Rho(np.nan, np.nan, np.nan, len(found), 0)
    seeds = pd.Series([rho for _, rho, _ in known]).groupby([seed for seed, _, _ in known]).mean().to_numpy()
    value = float(seeds.mean())
    if len({seed for seed, _, _ in found}) == 1:
        return Rho(value, *over_layers(value, known[0][2], controls), len(found), len(known))
    low = high = np.nan
    if len(seeds) >= FEWEST and np.ptp(seeds) > 0:
        ends = interval(seeds, LEVEL)
        low, high = np.clip([ends.low, ends.high], -1, 1)
    return Rho(value, float(low), float(high), len(found), len(known))


def over_layers(rho: float, layers: int, controls: int) -> tuple[float, float]:
    """The interval of one model's ρ: Fisher's z, of variance `(1 + ρ²/2)/(n − 3 − k)` (Bonett & Wright 2000)."""
    free = layers - 3 - controls
    if free < 1 or rho == 0:  # 0: nothing but the controls, in any sample
        return np.nan, np.nan
    width = scipy.stats.norm.ppf(0.5 + LEVEL / 2) * np.sqrt((1 + rho**2 / 2) / free)
    center = np.arctanh(np.clip(rho, -1 + 1e-9, 1 - 1e-9))
    return float(np.tanh(center - width)), float(np.tanh(center + width))
