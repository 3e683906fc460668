"""Scoring of roles from z-scores of measures: the paper's rule, and the calibrated one, relative to the peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.null.peers import FEWEST, limit, spread
from orchestrator.forensics.roles.routing import ABOUT, CALIBRATED, FEATURES, MARGIN, NEUTRAL, ROLES, Role, decide
from orchestrator.forensics.roles.treatments import TREATMENTS, Treatment

CONSTANT = 1e-9  # a spread below this share of the values is rounding
LARGEST = 3.0  # z-score

OF_HEADS = frozenset({"head_evenness", "head_diversity", "coupling"})  # features that need the number of heads

Measures = Mapping[str, float | None]  # of one layer
Chance = Sequence[Mapping[str, np.ndarray]]  # per layer: measure → its values by chance, [R]


def paper(rows: Sequence[Measures], chance: Chance, headless: Collection[int] = ()) -> list[Role]:
    """The paper's rule: each feature's z-score over the layers that have it; no null (SCIENCE §2).

    `headless`: the layers whose number of heads is not known.
    """
    z: list[dict[str, float]] = [{} for _ in rows]
    for feature in FEATURES:
        layers, x = _present(rows, feature)
        if layers:
            std = x.std()
            scores = (x - x.mean()) / std if std > CONSTANT * np.abs(x).max() else np.zeros_like(x)
            _enter(z, feature, layers, scores)
    return [
        decide(layer, able=_able(row), silent=_silent(index, headless))
        for index, (layer, row) in enumerate(zip(z, rows, strict=True))
    ]


def calibrated(rows: Sequence[Measures], chance: Chance, headless: Collection[int] = ()) -> list[Role]:
    """Roles by z-scores that are 0 where a layer lies within the spread of its peers (SCIENCE §3).

    `chance`: the values of `treatments.SHAPED` measures by chance, where layers differ in shape; else empty mappings.
    A layer without them lacks a feature for which others have them: its value is not comparable with theirs.
    `headless`: the layers whose number of heads is not known.
    """
    z: list[dict[str, float]] = [{} for _ in rows]
    head = bool(rows) and rows[-1].get("source_mean") is not None  # only the head reads the last layer
    for feature, treatment in TREATMENTS.items():
        measure = treatment.measure or feature
        layers, x = _present(rows, measure)
        if treatment.shaped and any(measure in layer for layer in chance):
            keep = [measure in chance[layer] for layer in layers]
            layers, x = [layer for layer, kept in zip(layers, keep, strict=True) if kept], x[keep]
            by_chance = [treatment.transform(chance[layer][measure]).mean() for layer in layers]
        else:
            by_chance = [0.0] * len(layers)
        if layers:
            y = treatment.transform(x) - by_chance
            excess = y - treatment.growth * _log_rms(rows)[layers] if treatment.growth else y
            uneven = treatment.unevenness(len(rows), head)[layers]
            for peers in _peers([rows[layer] for layer in layers], treatment):
                scores = beyond(y[peers], treatment, uneven[peers], excess[peers])
                _enter(z, feature, [layers[at] for at in peers], scores)
    above = NEUTRAL + MARGIN
    return [
        _by_measures(decide(layer, CALIBRATED, above, _able(row), _silent(index, headless)))
        for index, (layer, row) in enumerate(zip(z, rows, strict=True))
    ]


def _silent(layer: int, headless: Collection[int]) -> Collection[str]:
    """The features that count as 0 in a layer whose number of heads is not known."""
    return OF_HEADS if layer in headless else ()


def _able(row: Measures) -> list[str]:
    """The roles that a layer can have, by the matrices that it has; none where all of them are zero."""
    norms = [value for name, value in row.items() if name.startswith("spectral_norm.") and value is not None]
    if norms and not any(norms):
        return []
    return [role for role in ROLES if role not in ABOUT or row.get(f"spectral_norm.{ABOUT[role]}", 0.0) is not None]


def _peers(rows: Sequence[Measures], treatment: Treatment) -> list[list[int]]:
    """The rows that are compared with each other: all, or those that have the same kinds of matrices."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for at, row in enumerate(rows):
        held = tuple(kind for kind in KINDS if row.get(f"spectral_norm.{kind}") is not None)
        groups.setdefault(held if treatment.whole else (), []).append(at)
    return list(groups.values())


def _by_measures(role: Role) -> Role:
    """The role with its evidence named by the measures that were compared."""
    return replace(role, evidence=[of[0] + (TREATMENTS[of[1:]].measure or of[1:]) for of in role.evidence])


def beyond(y: np.ndarray, treatment: Treatment, unevenness: np.ndarray, excess: np.ndarray | None = None) -> np.ndarray:
    """z-scores [L] of a feature, 0 within the spread of the peers (SCIENCE §3).

    y [L]: its transformed values; `unevenness` [L]: the relative standard deviation of each by chance. `excess` [L]: y
    less what layers that are all alike would give at each depth, where that differs: a layer must lie beyond its peers
    by its excess, and not lie on the other side of them by y.
    """
    excess = y if excess is None else excess
    d, e = y - np.median(y), excess - np.median(excess)
    scale = math.sqrt(np.square(e).mean())
    if len(y) < FEWEST or scale <= CONSTANT * max(1.0, float(np.abs(y).max())):
        return np.zeros_like(y)
    bar = limit(len(y)) * np.maximum(spread(e / unevenness), treatment.noise) * unevenness
    differs = (np.abs(e) > bar) & (d * e >= 0)
    ratio = np.divide(np.square(bar), np.square(e), out=np.ones_like(e), where=differs)
    return np.asarray(np.clip(e / scale * (1 - ratio), -LARGEST, LARGEST))


def _log_rms(rows: Sequence[Measures]) -> np.ndarray:
    """ln of the stream's RMS before each layer: [L]; 0 where it is not known."""
    return np.array([math.log(rms) if (rms := row.get("stream_rms")) else 0.0 for row in rows])


def _present(rows: Sequence[Measures], feature: str) -> tuple[list[int], np.ndarray]:
    """The layers that have the feature, and its values there."""
    present = {layer: value for layer, row in enumerate(rows) if (value := row.get(feature)) is not None}
    return list(present), np.array(list(present.values()), dtype=np.float64)


def _enter(z: list[dict[str, float]], feature: str, layers: Sequence[int], scores: np.ndarray) -> None:
    for layer, score in zip(layers, scores, strict=True):
        z[layer][feature] = float(score)


SCORINGS: dict[str, Callable[[Sequence[Measures], Chance, Collection[int]], list[Role]]] = {
    "calibrated": calibrated,
    "paper": paper,
}
