"""The space of a search: the values that each key may take, as Optuna's distributions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.common.errors import UserError, nearest
from orchestrator.config import keys
from orchestrator.config.schema import Config

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGE = re.compile(r"\s*(\w+)\s*\(([^,()]+),([^,()]+)\)\s*")
# keys that all trials share: their validation losses would not compare, or nothing is computed otherwise
ONCE = ("train.eval_every", "train.checkpoint_every", "forensics.every")  # done at the end of an explored run alone
SHARED = (
    *keys.OPERATIONAL, *keys.OF_ROUNDING, *ONCE, "seed", "arm", "needs", "branch", "data", "forensics", "train.steps",
    "train.seq_len", "train.log_every",
)  # fmt: skip
FIGURES = 3  # least significant figures of a proposed number
FINENESS = 1000  # parts of a range, to one of which a proposed number is rounded at most


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
        if keys.is_within(key, SHARED) or key.partition("@")[0] in SHARED:
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
    """The value as an override has it."""
    if value is None:
        return "null"
    return json.dumps(value) if isinstance(value, bool | list | dict) else str(value)


def rounded(value: Any, one: BaseDistribution) -> str:
    """A proposed value as an override: a float with few figures, though within its range and near what was proposed."""
    from optuna.distributions import FloatDistribution

    if not isinstance(one, FloatDistribution):
        return text(value)
    for figures in range(FIGURES, 17):
        near = float(f"{value:.{figures}g}")
        if one.low <= near <= one.high and abs(near - value) * FINENESS <= one.high - one.low:
            return f"{value:.{figures}g}"
    return repr(value)


def check(space: Mapping[str, Any], base: Mapping[str, Any], composes: Callable[[str], object]) -> None:
    """Raise `UserError` for a key of which no value composes, a choice that does not, or fractions of a whole number.

    `base`: key → the baseline's value. `composes` raises `UserError` for an override that does not. One end of a range
    may need another value beside it.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    typed = keys.flatten(Config())  # without the entries of free dicts, such as coefficients, where 0 is any number
    for key, one in distributions(space).items():
        if isinstance(one, FloatDistribution) and key in typed and type(base.get(key)) is int:
            raise UserError(f"search.space: {key} is {space[key]}, and takes whole numbers: write int(low, high).")
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
