"""A reading's body in numbers: its profiles along depth, its budget, and how far its layers part (SCIENCE §4)."""

from __future__ import annotations

from typing import Any

import numpy as np

Reading = dict[str, Any]  # a forensics result


def profile(reading: Reading, measure: str) -> np.ndarray | None:
    """One measure of every layer, [L]; null unless every layer has it."""
    values = [layer["measures"].get(measure) for layer in reading["layers"]]
    return None if any(value is None for value in values) else np.asarray(values, dtype=np.float64)


def total(reading: Reading, measure: str) -> float | None:
    values = profile(reading, measure)
    return None if values is None else float(values.sum())


def centre(budget: np.ndarray) -> float | None:
    """Mean depth of the budget [L], 0 = first layer, 1 = last; null for an empty budget or a single layer."""
    if budget.size < 2 or budget.sum() <= 0.0:
        return None
    return float(np.average(depths(budget), weights=budget))


def depths(budget: np.ndarray) -> np.ndarray:
    """Depth of each layer, 0…1, [L]."""
    return np.linspace(0.0, 1.0, budget.size)


def thirds(budget: np.ndarray) -> tuple[float, float, float]:
    """Budget [L] held by the early, middle and late third of the layers; earlier thirds take a remainder."""
    early, middle, late = (float(part.sum()) for part in np.array_split(budget, 3))
    return early, middle, late


def spread(reading: Reading) -> float | None:
    """Standard deviation of attention's share of the energy over the layers; null for a single layer."""
    shares = profile(reading, "attention_share")
    return None if shares is None or shares.size < 2 else float(np.std(shares))


def roles_of(reading: Reading) -> list[str]:
    return [layer["role"] for layer in reading["layers"]]
