"""A routing table for the damage, fitted on some groups of models and judged on the others.

The score of a layer is the sum of a few measures' votes, each with a sign, as in `forensics/roles/routing.py`: a vote
is the normal score of the layer's rank among its peers. So it is monotone in every measure, and free of units.
Measures are chosen one at a time: the one, with the sign, that raises the mean ρ (depth partialled out) over the groups
of the fit most, while it gains at least `GAIN`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.stats

from tests.studies.prediction.correlation import spearman

MOST = 4  # measures
GAIN = 0.02
Routing = dict[str, int]  # measure → sign


def votes(values: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks (Blom 1958); 0 where a value is absent."""
    known = np.isfinite(values)
    if known.sum() < 2:
        return np.zeros(len(values))
    ranks = scipy.stats.rankdata(values[known])
    found = np.zeros(len(values))
    found[known] = scipy.stats.norm.ppf((ranks - 0.375) / (known.sum() + 0.25))
    return found


class Votes:
    """The votes of candidate measures and the outcome of every model, by group."""

    def __init__(self, layers: pd.DataFrame, candidates: Sequence[str], outcome: str) -> None:
        self.models: dict[str, list[tuple[Mapping[str, np.ndarray], np.ndarray, np.ndarray]]] = {}
        for (group, _), model in layers.groupby(["group", "run"]):
            columns = {name: model[name].to_numpy(float, na_value=np.nan) for name in (*candidates, outcome, "depth")}
            of = ({name: votes(columns[name]) for name in candidates}, columns[outcome], columns["depth"])
            self.models.setdefault(str(group), []).append(of)

    def each(self, routing: Routing, group: str, partial: bool = True) -> list[float]:
        """ρ of the routing's score with the outcome in every model of a group."""
        return [
            spearman(sum(sign * of[name] for name, sign in routing.items()) + 0.0 * y, y, depth if partial else None)
            for of, y, depth in self.models[group]
        ]

    def mean(self, routing: Routing, groups: Sequence[str]) -> float:
        """Mean over groups of the mean ρ over their models; an undefined ρ counts as 0."""
        return float(np.mean([np.mean(np.nan_to_num(self.each(routing, group))) for group in groups]))


def fit(of: Votes, candidates: Sequence[str], groups: Sequence[str]) -> Routing:
    """The routing that these groups give."""
    routing: Routing = {}
    best = 0.0
    while len(routing) < MOST:
        options = [routing | {name: sign} for name in candidates if name not in routing for sign in (1, -1)]
        scored = [(of.mean(option, groups), option) for option in options]
        value, option = max(scored, key=lambda pair: pair[0])
        if value < best + GAIN:
            break
        best, routing = value, option
    return routing
