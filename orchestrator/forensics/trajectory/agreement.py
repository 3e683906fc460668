"""Agreement of the readings of a run with its last one: by the layers' roles, or by all their scores (SCIENCE §4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from orchestrator.forensics.reading import Reading, roles_of
from orchestrator.forensics.roles.routing import ROLES, state

ROLE, SCORE = "roles", "scores"
KINDS = (ROLE, SCORE)


def scorings_of(readings: Sequence[Reading]) -> list[str]:
    """The scorings that every layer of every reading holds, the one shown first."""
    held = [set(layer.scorings) for reading in readings for layer in reading.layers]
    both = set.intersection(*held) if held else set()
    return sorted(both, key=lambda scoring: (scoring != readings[-1].scoring, scoring))


def agreement(readings: Sequence[Reading], kind: str) -> np.ndarray:
    """The agreement of each reading with the last one, [readings, units]; that of the last is 1.

    By roles a unit is a layer that ends with a role (a tie is none), and the agreement is 1 where it has that role.
    By scores the whole stack is one unit, and the agreement is `likeness`; none where the last scores are all alike.
    """
    last = readings[-1]
    if kind == SCORE:
        like = [likeness(reading, last) for reading in readings]
        return np.array(like)[:, None] if like[-1] > 0 else np.empty((len(readings), 0))
    final = roles_of(last)
    layers = [layer for layer, role in enumerate(final) if role in ROLES]
    roles = [roles_of(reading) for reading in readings]
    held = [[float(of[layer] == final[layer]) for layer in layers] for of in roles]
    return np.array(held).reshape(len(readings), len(layers))


def likeness(a: Reading, b: Reading) -> float:
    """Pearson's r over layers × roles of the scores of two readings, less each role's mean over the layers.

    A role that some layer of either has no score for is left out. 0 where either has no spread.
    """
    x, y = _scores(a), _scores(b)
    known = ~np.isnan(x).any(axis=0) & ~np.isnan(y).any(axis=0)
    x, y = (values[:, known] - values[:, known].mean(axis=0) for values in (x, y))
    size = np.linalg.norm(x) * np.linalg.norm(y)
    return float((x * y).sum() / size) if size > 0 else 0.0


def changes(readings: Sequence[Reading], kind: str) -> np.ndarray:
    """The change over each interval between readings, [readings − 1].

    By roles, the share of the layers whose state changed (from one tie to another is no change); by scores, 1 − r.
    """
    if kind == SCORE:
        return np.array([1.0 - likeness(before, after) for before, after in pairwise(readings)])
    states = [[state(role) for role in roles_of(reading)] for reading in readings]
    return np.array([np.mean([x != y for x, y in zip(*two, strict=True)]) for two in pairwise(states)])


def _scores(reading: Reading) -> np.ndarray:
    """Scores [L, roles]; NaN for an absent one."""
    return np.array([[layer.scores[role] for role in ROLES] for layer in reading.layers], dtype=np.float64)
