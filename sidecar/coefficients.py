"""Coefficients: multipliers written as a formula of depth, kind of matrix and time, for any model (SCIENCE §6).

`ln m = Σ_k c_k·φ_k(unit, progress)`. A term φ is one function and one line in `TERMS`; the name of a kind of unit, such
as `down_proj` or `embedding`, is a term too: 1 for its units. `a_x_b` is the product of two terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from sidecar.units import Unit

Coefficients = Mapping[str, Mapping[str, float]]  # channel → term → coefficient
Term = Callable[[Sequence[Unit], float], Sequence[float]]  # units, share of the run that is over → value per unit

PRODUCT = "_x_"
BRANCHES = {"self_attn": 1.0, "attn": 1.0, "attention": 1.0, "mlp": -1.0, "ffn": -1.0, "feed_forward": -1.0}


def amount(units: Sequence[Unit], progress: float) -> Sequence[float]:
    """1: all units alike."""
    return [1.0] * len(units)


def depth(units: Sequence[Unit], progress: float) -> Sequence[float]:
    """−1 at the first layer, 1 at the last; 0 outside the layers."""
    return [2 * unit.depth - 1 for unit in units]


def ends(units: Sequence[Unit], progress: float) -> Sequence[float]:
    """1 at the first and the last layer, −1 half way between; 0 outside the layers."""
    return [0.0 if unit.layer is None else 2 * (2 * unit.depth - 1) ** 2 - 1 for unit in units]


def time(units: Sequence[Unit], progress: float) -> Sequence[float]:
    """−1 at the start of the run, 1 at its end."""
    return [2 * progress - 1] * len(units)


def attention(units: Sequence[Unit], progress: float) -> Sequence[float]:
    """1 for the matrices of attention, −1 for those of the FFN; 0 outside the layers and for whole layers."""
    return [next((BRANCHES[name] for name in unit.kind.split(".") if name in BRANCHES), 0.0) for unit in units]


def fan_in(units: Sequence[Unit], progress: float) -> Sequence[float]:
    """ln of the number of inputs of the unit's matrix, against the parameter-weighted mean of all matrices in layers.

    0 outside the layers, and for vectors.
    """
    inside = [unit for unit in units if unit.layer is not None and unit.inputs]
    total = sum(unit.size for unit in inside)
    mean = sum(unit.size * math.log(unit.inputs) for unit in inside) / max(total, 1)
    return [0.0 if unit.layer is None or not unit.inputs else math.log(unit.inputs) - mean for unit in units]


def early(units: Sequence[Unit], progress: float) -> Sequence[float]:
    """1 in the first third of the layers."""
    return _band(units, 0.0, 1 / 3)


def middle(units: Sequence[Unit], progress: float) -> Sequence[float]:
    """1 in the middle third of the layers."""
    return _band(units, 1 / 3, 2 / 3)


def late(units: Sequence[Unit], progress: float) -> Sequence[float]:
    """1 in the last third of the layers."""
    return _band(units, 2 / 3, 2.0)


TERMS: dict[str, Term] = {
    "amount": amount,
    "depth": depth,
    "ends": ends,
    "time": time,
    "attention": attention,
    "fan_in": fan_in,
    "early": early,
    "middle": middle,
    "late": late,
}


def values_of(term: str, units: Sequence[Unit], progress: float) -> Tensor:
    """The term for every unit, [units], float64. Raises `ValueError` for a name that is no term of these units."""
    return reduce(torch.mul, (_simple(name, units, progress) for name in term.split(PRODUCT)))


def log_multipliers(coefficients: Mapping[str, float], units: Sequence[Unit], progress: float) -> Tensor:
    """`Σ_k c_k·φ_k`, [units], float64. Raises `ValueError` for an unknown term, or a coefficient that is no number."""
    total = torch.zeros(len(units), dtype=torch.float64)
    for term, coefficient in coefficients.items():
        if not isinstance(term, str):
            raise ValueError(f"a formula has no term {term!r}: terms are names.")
        if not isinstance(coefficient, int | float) or not math.isfinite(coefficient):
            raise ValueError(f"the coefficient {term}={coefficient} must be a finite number.")
        total += coefficient * values_of(term, units, progress)
    return total


def decisions_of(
    coefficients: Coefficients,
    units: Mapping[str, Sequence[Unit]],
    interval: int,
    steps: int | None,
    mean_matched: bool = False,
    bounds: Mapping[str, Sequence[float]] | None = None,
) -> list[dict[str, Any]]:
    """The decisions of a run, as `Playback` plays them: one, or one at every interval where a term depends on time.

    `bounds`: channel → least and largest multiplier. `mean_matched`: in every decision the parameter-weighted mean
    multiplier of a channel is 1, whatever the bounds. Raises `ValueError` for
    unknown terms and what `check` refuses.
    """
    check(coefficients, units, steps)
    at = [*range(0, steps or 1, interval)] if any(moves(term) for of in coefficients.values() for term in of) else [0]
    return [
        {
            "step": step,
            "values": {
                channel: _named(
                    group,
                    log_multipliers(coefficients[channel], group, step / (steps or 1)).exp(),
                    (bounds or {}).get(channel, (0.0, math.inf)),
                    mean_matched,
                )
                for channel, group in units.items()
            },
        }
        for step in at
    ]


def check(coefficients: Coefficients, channels: Iterable[str], steps: int | None) -> None:
    """Raise `ValueError` for channels without coefficients or without units, and time without the run's length."""
    if unknown := sorted(set(coefficients) ^ set(channels)):
        raise ValueError(
            f"sidecar coefficients are of channels {sorted(coefficients)} and its channels are {sorted(channels)}: "
            f"name {unknown[0]} in both, or in neither."
        )
    if steps is None and any(moves(term) for of in coefficients.values() for term in of):
        raise ValueError("sidecar coefficients of 'time' need the length of the run: give steps=….")


def moves(term: str) -> bool:
    """True where the term depends on time."""
    return "time" in term.split(PRODUCT)


def _named(units: Sequence[Unit], multipliers: Tensor, bounds: Sequence[float], mean_matched: bool) -> dict[str, float]:
    multipliers = multipliers.clamp(*bounds)
    if mean_matched:
        sizes = torch.tensor([float(unit.size) for unit in units], dtype=torch.float64)
        multipliers = multipliers * sizes.sum() / (sizes @ multipliers)
    return {unit.name: value for unit, value in zip(units, multipliers.tolist(), strict=True)}


def _simple(name: str, units: Sequence[Unit], progress: float) -> Tensor:
    if name in TERMS:
        return torch.tensor(TERMS[name](units, progress), dtype=torch.float64)
    if any(unit.is_of(name) for unit in units):
        return torch.tensor([float(unit.is_of(name)) for unit in units], dtype=torch.float64)
    known = ", ".join([*TERMS, *dict.fromkeys(unit.short_kind for unit in units)])
    raise ValueError(f"a formula has no term '{name}' for this model: choose among {known}.")


def _band(units: Sequence[Unit], low: float, high: float) -> list[float]:
    return [float(unit.layer is not None and low <= unit.depth < high) for unit in units]
