"""Events of a layer between two readings, one function and a line in `EVENTS` each (SCIENCE §4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from orchestrator.forensics.reading import Reading, roles_of
from orchestrator.forensics.roles.routing import state
from orchestrator.forensics.trajectory.loss_drops import outliers

LEAST = 1e-3  # rise of a pair's value that counts: readings hold four digits

Event = Callable[[Sequence[Reading]], np.ndarray]  # readings → number of layers in each interval, [readings − 3]


def changed(before: str, after: str) -> bool:
    """True for any change of state."""
    return before != after


def to_specialist(before: str, after: str) -> bool:
    """True for a layer that becomes a specialist."""
    return before != after == "specialist"


def passthrough_to_specialist(before: str, after: str) -> bool:
    """True for a passthrough that becomes a specialist, the paper's pattern that locks in."""
    return (before, after) == ("passthrough", "specialist")


def transitions(is_one: Callable[[str, str], bool]) -> Event:
    """The event that a layer's state changes in a way for which `is_one` (before, after) is true."""

    def count(readings: Sequence[Reading]) -> np.ndarray:
        states = [[state(role) for role in roles_of(reading)] for reading in readings]
        moved = [sum(is_one(x, y) for x, y in zip(*two, strict=True)) for two in pairwise(states)]
        return np.array(moved, dtype=int)[1:-1]

    return count


def deepening(readings: Sequence[Reading]) -> np.ndarray:
    """Count the hubs that deepen an underweighted head pair.

    The layer is a hub after the interval. The value of its best pair of heads with some other layer (`coupling`) was
    below the median of all pairs of layers, and rises by more than 3 robust σ beyond what its neighbours in time
    predict, as a drop of the loss falls.
    """
    values = [None if reading.matrices is None else reading.matrices.coupling for reading in readings]
    if len(readings) < 4 or any(of is None for of in values):
        return np.zeros(max(0, len(readings) - 3), dtype=int)
    coupling = np.array(values, dtype=np.float64)  # [readings, L, L], NaN where absent
    depth = coupling.shape[1]
    rows, columns = np.triu_indices(depth, 1)
    pairs = coupling[:, rows, columns]  # [readings, pairs]
    known = ~np.isnan(pairs).any(axis=0)
    rows, columns, pairs = rows[known], columns[known], pairs[:, known]
    if not pairs.shape[1]:
        return np.zeros(len(readings) - 3, dtype=int)
    steps = [reading.step or 0 for reading in readings]
    rises = np.stack([outliers(of, steps, LEAST) for of in pairs.T], axis=1)  # [readings − 3, pairs]
    below = pairs[1:-2] < np.median(pairs[1:-2], axis=1, keepdims=True)
    hubs = np.array([[role == "hub" for role in roles_of(reading)] for reading in readings[2:-1]])
    deeper = rises & below
    touched = np.array([np.isin(np.arange(depth), np.r_[rows[of], columns[of]]) for of in deeper])  # [readings − 3, L]
    return (touched & hubs).sum(axis=1)


EVENTS: dict[str, Event] = {
    "any change of role": transitions(changed),
    "passthrough → specialist": transitions(passthrough_to_specialist),
    "to specialist": transitions(to_specialist),
    "hub deepens a head pair": deepening,
}
