"""The fitted predictors: each way of fitting, judged on the group that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from tests.studies.prediction.correlation import Rho
from tests.studies.prediction.fit import Predictor, Votes, fit
from tests.studies.prediction.predictors import APART, GROUPS, OWN, PROBED, measures, newest
from tests.studies.prediction.tables import TARGETS


@dataclass(frozen=True)
class Fitted:
    """One way of fitting: ρ in every group held out, depth partialled out, and the predictor that all groups give."""

    way: str
    held_out: dict[str, Rho]
    predictor: Predictor


def fits(layers: pd.DataFrame) -> dict[str, list[Fitted]]:
    """Target → the ways of fitting its predictor, and single predictors beside them, which nothing is fitted for."""
    layers = newest(layers[layers["group"] != APART])
    return {target: _of_target(layers, target) for target in TARGETS}


def _of_target(layers: pd.DataFrame, target: str) -> list[Fitted]:
    candidates, own = measures(layers), f"own.{target}"
    alone: dict[str, Predictor] = {name: {column: 1} for name, column in (PROBED | {OWN: own}).items()}
    of = Votes(layers, [*candidates, *PROBED.values(), own], f"damage.{target}")
    ways: dict[str, tuple[list[str], Predictor]] = {
        "weights": (candidates, {}),
        "weights and a probe": ([*candidates, *PROBED.values()], {}),
        "weights and own samples": ([*candidates, own], {}),
    } | {f"weights, added to {name}": (candidates, alone[name]) for name in PROBED}
    found = [
        Fitted(f"nothing: {name}", {group: of.of_group(predictor, group) for group in GROUPS}, predictor)
        for name, predictor in alone.items()
    ]
    for way, (among, start) in ways.items():
        held_out = {
            held: of.of_group(fit(of, among, [group for group in GROUPS if group != held], start), held)
            for held in GROUPS
        }
        found.append(Fitted(way, held_out, fit(of, among, GROUPS, start)))
    return found
