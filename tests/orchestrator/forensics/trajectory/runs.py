"""Runs whose roles and scores the test decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.forensics.reading import Reading
from orchestrator.forensics.roles.routing import ROLES
from tests.orchestrator.reading import layer_json, reading_json

LETTERS = {"H": "hub", "D": "damper", "P": "passthrough", "S": "specialist", "-": "none", "t": "damper/hub"}


def run_of(
    strips: Sequence[str], scores: np.ndarray | None = None, coupling: np.ndarray | None = None,
    steps: Sequence[int] | None = None,
) -> list[Reading]:  # fmt: skip
    """Readings from one strip of letters for each layer, a letter a reading.

    `scores`: [readings, L, roles]. `coupling`: [readings, L, L].
    """
    count = len(strips[0])
    readings = []
    for k in range(count):
        layers: list[dict[str, Any]] = []
        for index, strip in enumerate(strips):
            values = 0.5 * np.ones(len(ROLES)) if scores is None else scores[k, index]
            own = dict(zip(ROLES, map(float, values), strict=True))
            layers.append(layer_json(index, LETTERS[strip[k]], scores=own))
        of = None if coupling is None else {"composition": [], "coupling": coupling[k].tolist()}
        step = k * 10 if steps is None else steps[k]
        readings.append(Reading.from_json(reading_json(layers, step, matrices=of)))
    return readings


def steps_of(readings: Sequence[Reading]) -> list[int]:
    return [reading.step or 0 for reading in readings]
