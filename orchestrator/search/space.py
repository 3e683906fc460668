"""The space of a search: the values that each key may take, as Optuna's distributions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.common.errors import UserError, nearest
from orchestrator.config import keys

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGE = re.compile(r"\s*(\w+)\s*\(([^,()]+),([^,()]+)\)\s*")
OF_ALL_TRIALS = ("seed", "arm", "needs", "branch", "train.steps")
FIGURES = 3  # significant figures of a number that is proposed


def _kinds() -> dict[str, Callable[[float, float], BaseDistribution]]:
    """Name of a range → the distribution between two ends."""
    from optuna.distributions import FloatDistribution, IntDistribution

    return {
        "log": lambda low, high: FloatDistribution(low, high, log=True),
        "uniform": FloatDistribution,
        "int": lambda low, high: IntDistribution(_whole(low), _whole(high)),
    }


def distributions(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Key → its distribution. Raises `UserError` for a key that no arm may set, and for values that are no range."""
    found = {}
    for key, values in space.items():
        if {key, key.split(".")[0]} & {*keys.OPERATIONAL, *OF_ALL_TRIALS}:
            raise UserError(f"search.space: all trials share {key}: search over keys of the model or of training.")
        try:
            found[key] = _distribution(values)
        except ValueError as error:
            raise UserError(f"search.space: {key} is {values}, {error}.") from error
    return found


def _distribution(values: Any) -> BaseDistribution:
    """The distribution that a configuration's value describes. Raises `ValueError` with the reason and the cure."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(values, list):
        choices = [text(value) for value in values]
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise ValueError("a list with fewer than two values, or with one twice: name each once")
        return CategoricalDistribution(choices)
    kinds = _kinds()
    match = RANGE.fullmatch(values) if isinstance(values, str) else None
    if match is None:
        raise ValueError(
            f"neither a list nor a range: write one of {', '.join(f'{kind}(low, high)' for kind in kinds)}"
        )
    kind, *ends = match.groups()
    if kind not in kinds:
        raise ValueError(f"and there is no range '{kind}'{nearest(kind, kinds)}: use one of {', '.join(kinds)}")
    try:
        low, high = map(float, ends)
    except ValueError:
        raise ValueError("whose ends are not both numbers: write numbers") from None
    if not math.isfinite(high - low) or not low < high or (kind == "log" and low <= 0.0):
        raise ValueError("no range: put the lower end first" + ", above 0" * (kind == "log"))
    return kinds[kind](low, high)


def _whole(end: float) -> int:
    if end != int(end):
        raise ValueError("whose ends are not whole numbers: write whole numbers, or use uniform(…)")
    return int(end)


def text(value: Any) -> str:
    """The value as an override has it; numbers with `FIGURES` significant figures."""
    if value is None:
        return "null"
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    return f"{value:.{FIGURES}g}" if isinstance(value, float) else str(value)


def check(space: Mapping[str, Any], composes: Callable[[str], object]) -> None:
    """Raise `UserError` for a key of which no value composes, or a choice that does not.

    `composes` raises `UserError` for an override that does not. One end of a range may need another value beside it.
    """
    from optuna.distributions import CategoricalDistribution

    for key, one in distributions(space).items():
        is_list = isinstance(one, CategoricalDistribution)
        ends = one.choices if is_list else (one.low, one.high)  # type: ignore[attr-defined]
        errors = []
        for override in (f"{key}={text(end)}" for end in ends):
            try:
                composes(override)
            except UserError as error:
                errors.append(f"search.space, {override}: {error}")
        if errors and (is_list or len(errors) == len(ends)):
            raise UserError(errors[0])
