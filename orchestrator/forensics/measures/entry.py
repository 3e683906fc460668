"""One entry of the table of measures: a function of a layer's statistics, and what these must hold for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Value = float | None
Function = Callable[..., Value]
F = TypeVar("F", bound=Function)

NEEDS = {
    "W": "weights",
    "P": "a norm after the branch",
    "N": "a norm of the FFN whose place is known",
    "H": "the number of heads",
    "L": "4 layers or more, whose matrices and heads are known",
    "R": "a reference checkpoint (step 0 of the same run)",
    "O": "the optimizer state",
    "G": "gradients (tokens to run backwards)",
    "A": "an activation probe (tokens to run)",
}
BRANCHES = {"attention": "o", "ffn": "down"}  # branch → the kind of the matrix that writes, without which it lacks


@dataclass(frozen=True)
class Measure:
    """A function of a layer's statistics, and what these must hold for it."""

    function: Function
    needs: str  # a key of NEEDS
    branches: tuple[str, ...]  # of BRANCHES: a layer that lacks one of them lacks the measure


ENTRIES: dict[str, dict[str, Measure]] = defaultdict(dict)  # module → name → measure, in the order of the module


def entry(name: str, needs: str = "W", of: str = "") -> Callable[[F], F]:
    """Add the decorated function to the table as the measure `name`; `of`: the branches that it is taken of."""

    def add(function: F) -> F:
        ENTRIES[function.__module__][name] = Measure(function, needs, tuple(of.split()))
        return function

    return add


def ratio(numerator: float, denominator: float) -> Value:
    """The quotient; None where the denominator is 0."""
    return numerator / denominator if denominator else None
