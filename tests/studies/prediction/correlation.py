"""Spearman's correlation within models, raw and with depth partialled out, and its interval over models or layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.stats

from orchestrator.analysis.statistics import interval

RESAMPLES = 2000


def spearman(x: np.ndarray, y: np.ndarray, depth: np.ndarray | None = None) -> float:
    """ρ over the layers where both are known; with `depth`, of the ranks less their regression on depth's ranks.

    NaN for fewer than five layers, and where one of the two does not vary (is nothing but depth, where that is out).
    """
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 5:
        return np.nan
    a, b = (scipy.stats.rankdata(of[known]) for of in (x, y))
    if depth is not None:
        d = scipy.stats.rankdata(depth[known])
        a, b = (_residuals(of, d) for of in (a, b))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 1e-9 * len(a) else np.nan


def _residuals(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    x = x - x.mean()
    return y - y.mean() - x * (x @ y) / (x @ x)


def of_model(layers: pd.DataFrame, predictor: str, outcome: str, partial: bool) -> float:
    """ρ over the layers of one model; a `−` before a name turns its sign."""
    x, y = (_column(layers, name) for name in (predictor, outcome))
    return spearman(x, y, _column(layers, "depth") if partial else None)


def _column(layers: pd.DataFrame, name: str) -> np.ndarray:
    values = layers[name.removeprefix("−")].to_numpy(float, na_value=np.nan)
    return -values if name.startswith("−") else values


def of_group(layers: pd.DataFrame, predictor: str, outcome: str, partial: bool) -> tuple[float, float, float]:
    """Mean ρ over the runs of a group and its 95 % interval: over runs, or over layers where there is one run alone."""
    each = np.array([of_model(run, predictor, outcome, partial) for _, run in layers.groupby("run")])
    each = each[np.isfinite(each)]
    if len(each) == 0:
        return np.nan, np.nan, np.nan
    if len(each) > 1:
        found = interval(each, 0.95)
        return float(each.mean()), *(np.nan if end is None else end for end in (found.low, found.high))
    draw = np.random.default_rng(0)
    resampled = [
        of_model(layers.iloc[draw.integers(0, len(layers), len(layers))], predictor, outcome, partial)
        for _ in range(RESAMPLES)
    ]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return float(each[0]), float(low), float(high)
