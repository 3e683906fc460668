"""A predictor of the damage, fitted on some groups of models and judged on the others.

The score of a layer is the sum of a few measures' votes, each with a sign, as in `forensics/roles/routing.py`: a vote
is the normal score of the layer's rank among its peers. So it is monotone in every measure, and free of units.
Measures are chosen one at a time: the one, with the sign, that raises the mean ρ (depth partialled out) over the groups
of the fit most, while it gains at least `GAIN`. Of a group each seed has the same say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats

from tests.studies.prediction.correlation import Rho, over_seeds, spearman

MOST = 4  # measures
GAIN = 0.02
Predictor = dict[str, int]  # measure → sign of its vote


def votes(values: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks (Blom 1958); 0 where a value is absent."""
    known = np.isfinite(values)
    if known.sum() < 2:
        return np.zeros(len(values))
    ranks = scipy.stats.rankdata(values[known])
    found = np.zeros(len(values))
    found[known] = scipy.stats.norm.ppf((ranks - 0.375) / (known.sum() + 0.25))
    return found


@dataclass(frozen=True)
class Model:
    """One model's votes of candidate measures [L], what is to be predicted [L], and depth [L]."""

    seed: str
    votes: Mapping[str, np.ndarray]
    outcome: np.ndarray
    depth: np.ndarray

    def rho(self, predictor: Predictor, partial: bool) -> float:
        """ρ of the predictor's score with the outcome."""
        score = sum((sign * self.votes[name] for name, sign in predictor.items()), np.zeros(len(self.outcome)))
        return spearman(score, self.outcome, [self.depth] if partial else [])


class Votes:
    """The models of every group."""

    def __init__(self, layers: pd.DataFrame, candidates: Sequence[str], outcome: str) -> None:
        self.models: dict[str, list[Model]] = {}
        for (group, seed, _), model in layers.groupby(["group", "seed", "run"]):
            columns = {name: model[name].to_numpy(float, na_value=np.nan) for name in (*candidates, outcome, "depth")}
            of = {name: votes(columns[name]) for name in candidates}
            self.models.setdefault(str(group), []).append(Model(str(seed), of, columns[outcome], columns["depth"]))

    def of_group(self, predictor: Predictor, group: str, partial: bool = True) -> Rho:
        """Mean ρ over the models of a group, with its interval."""
        found = [(model.seed, model.rho(predictor, partial), len(model.outcome)) for model in self.models[group]]
        return over_seeds(found, int(partial))

    def mean(self, predictor: Predictor, groups: Sequence[str]) -> float:
        """Mean over groups of the mean ρ over their models, depth partialled out; an undefined ρ counts as 0."""
        return float(
            np.mean(
                [np.mean(np.nan_to_num([of.rho(predictor, True) for of in self.models[group]])) for group in groups]
            )
        )


def fit(of: Votes, candidates: Sequence[str], groups: Sequence[str], start: Predictor | None = None) -> Predictor:
    """The predictor that these groups give, beginning with `start`."""
    predictor: Predictor = dict(start or {})
    best = of.mean(predictor, groups)
    while len(predictor) < MOST:
        options = [predictor | {name: sign} for name in candidates if name not in predictor for sign in (1, -1)]
        scored = [(of.mean(option, groups), option) for option in options]
        value, option = max(scored, key=lambda pair: pair[0])
        if value < best + GAIN:
            break
        best, predictor = value, option
    return predictor
