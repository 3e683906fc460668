"""Scoring of roles from z-scores of measures: the paper's rule, and the calibrated one, relative to the null."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.forensics.null.redrawn import OTHERWISE, RESAMPLED
from orchestrator.forensics.roles.routing import FEATURES, ROUTING, Role, decide

FEW = 5  # resamples; with fewer, layers share one variance
CONSTANT = 1e-12  # a spread below this share of the values is rounding

Measures = Mapping[str, float | None]  # of one layer
Chance = Sequence[Mapping[str, np.ndarray]]  # per layer: measure → its values over the resamples, [R]


def paper(rows: Sequence[Measures], chance: Chance) -> list[Role]:
    """The paper's rule: each feature's z-score over the layers that have it; no null (SCIENCE §2)."""
    z: list[dict[str, float]] = [{} for _ in rows]
    for feature in FEATURES:
        layers, x = _present(rows, feature)
        if layers:
            std = x.std()
            scores = (x - x.mean()) / std if std > CONSTANT * np.abs(x).max() else np.zeros_like(x)
            _enter(z, feature, layers, scores)
    return [decide(layer) for layer in z]


def logarithm(values: np.ndarray) -> np.ndarray:
    """ln, the transform of ratios."""
    return np.asarray(np.log(np.maximum(values, np.finfo(float).tiny)))


def anscombe(values: np.ndarray) -> np.ndarray:
    """Anscombe's transform of counts: their noise becomes nearly normal, of variance 1."""
    return np.asarray(2 * np.sqrt(values + 3 / 8))


@dataclass(frozen=True)
class Treatment:
    """The treatment of a feature in the calibrated scoring."""

    centred: bool = True  # structural: its mean over the resamples is subtracted, and with it the effect of width
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray
    measure: str | None = None  # the measure to use instead: one that does not depend on the layer's shape, or a count
    noise: float = 0.0  # least variance of the null, after the transform


NORM = Treatment(centred=False)
STRUCTURAL = Treatment()
COUNT = Treatment(transform=anscombe, noise=1.0)  # else any count would exceed resamples that are all 0
TREATMENTS = {  # every other routed feature is structural
    "balance": Treatment(centred=False, measure="balance_per_parameter"),
    "depletion_fraction": replace(COUNT, measure="depleted"),
    "down_ratio": Treatment(centred=False, transform=logarithm),
    "gamma_concentration": NORM,
    "post_norm_damped_fraction": NORM,
    "saturated_robust_fraction": replace(COUNT, measure="saturated_robust"),
    "stuck_fraction": NORM,
    "super_weight_ratio": Treatment(transform=logarithm),
    "total_write": Treatment(centred=False, transform=logarithm, measure="write_gain"),
}
PROBED = {"total_write": Treatment(transform=logarithm)}  # its null is a probe of redrawn models


def check_nulls(routing: Mapping[str, Mapping[str, int]] = ROUTING) -> None:
    """Raise `ValueError` for a routed feature whose measure has no null: any noise in it would make a role."""
    for role, routes in routing.items():
        for feature in routes:
            for treatment in (TREATMENTS.get(feature, STRUCTURAL), PROBED.get(feature, STRUCTURAL)):
                measure = treatment.measure or feature
                if measure not in RESAMPLED and measure not in OTHERWISE:
                    raise ValueError(
                        f"ROUTING['{role}']['{feature}'] has no null: the redrawn layers lack '{measure}', so noise in "
                        "it would make roles. In orchestrator/forensics/null/redrawn.py add its matrix to SPECTRA if "
                        "it reads a spectrum, or redraw what it reads in `_drawn` and add it to RESAMPLED, or add it "
                        "to OTHERWISE with the reason where its null comes from elsewhere."
                    )


check_nulls()
MEASURED = frozenset((*FEATURES, *(t.measure for t in TREATMENTS.values() if t.measure)))  # in the null, for scoring


def calibrated(rows: Sequence[Measures], chance: Chance) -> list[Role]:
    """Roles by z-scores that are shrunk to 0 where the resampled layers reach as far (SCIENCE §3).

    A layer without a null (nearly empty matrices may have none) lacks a feature for which other layers have one: its
    value is not comparable with theirs.
    """
    z: list[dict[str, float]] = [{} for _ in rows]
    probed = any(row.get("adjacent_alignment") is not None for row in rows)
    table = dict.fromkeys(FEATURES, STRUCTURAL) | TREATMENTS | (PROBED if probed else {})
    columns = {feature: _present(rows, table[feature].measure or feature) for feature in FEATURES}
    columns = {feature: column for feature, column in columns.items() if column[0]}
    bound = 2 * math.log(max(2, len(rows) * len(columns)))  # λ²: the square of the expected largest of so many
    for feature, (layers, x) in columns.items():
        treatment, measure = table[feature], table[feature].measure or feature
        judged = [layer for layer in layers if measure in chance[layer]] or layers
        no_null = np.zeros(1)  # a constant, which the median removes
        noise = [chance[layer].get(measure, no_null) for layer in judged]
        _enter(z, feature, judged, shrunk(x[np.isin(layers, judged)], noise, treatment, bound))
    return [decide(layer) for layer in z]


def shrunk(x: np.ndarray, noise: Sequence[np.ndarray], treatment: Treatment, bound: float) -> np.ndarray:
    """z-scores [L] of a feature's values x [L] against its resamples, [R] per layer (SCIENCE §3, steps 2 to 5)."""
    x, noise = treatment.transform(x), [treatment.transform(values) for values in noise]
    resamples = max(len(values) for values in noise)
    variances = np.array([values.var(ddof=1) if len(values) > 1 else 0.0 for values in noise])
    y = x - [values.mean() for values in noise] if treatment.centred else x
    if resamples < FEW:
        variances[:] = variances.mean()
    variances = np.maximum(variances, treatment.noise)
    s2 = (variances + variances.mean()) / 2 * (1 + 1 / resamples) * (1 + math.pi / (2 * len(x)))
    d = y - np.median(y)
    spread = math.sqrt(np.square(d).mean())
    if spread < CONSTANT * max(1.0, float(np.abs(x).max())):
        return np.zeros_like(x)
    ratio = np.divide(bound * s2, np.square(d), out=np.ones_like(d), where=np.square(d) > bound * s2)
    return np.asarray(np.clip(d / spread * (1 - ratio), -3, 3))


def _present(rows: Sequence[Measures], feature: str) -> tuple[list[int], np.ndarray]:
    """The layers that have the feature, and its values there."""
    present = {layer: value for layer, row in enumerate(rows) if (value := row.get(feature)) is not None}
    return list(present), np.array(list(present.values()), dtype=np.float64)


def _enter(z: list[dict[str, float]], feature: str, layers: Sequence[int], scores: np.ndarray) -> None:
    for layer, score in zip(layers, scores, strict=True):
        z[layer][feature] = float(score)


SCORINGS: dict[str, Callable[[Sequence[Measures], Chance], list[Role]]] = {"calibrated": calibrated, "paper": paper}
