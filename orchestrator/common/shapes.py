"""What a JSON or YAML file must hold, and the sentence for the first key that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST = 1e100  # magnitude of a number: its cube, and the sum of many, is still finite
SMALLEST = 1 / LARGEST  # of one above 0: any ratio is finite
LONGEST = 2**63 - 1  # of a whole number, which tables hold in 64 bits


class ShapeError(ValueError):
    """A value that a file cannot have: names its key, and not the file."""


@dataclass(frozen=True)
class Kind:
    """Values of one sort."""

    what: str  # they are called, as in "is not {what}"
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    """Comparing refuses NaN too, and raises for no integer, however long."""
    return (isinstance(value, float) or _is_integer(value)) and -LARGEST <= value <= LARGEST


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_integer(value) and 0 <= value <= LONGEST


def _of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


NUMBER = Kind(f"a number of magnitude up to {LARGEST:g}", _is_number)
POSITIVE = Kind(f"a number from {SMALLEST:g} to {LARGEST:g}", lambda value: _is_number(value) and value >= SMALLEST)
AMOUNT = Kind(f"0 or {POSITIVE.what}", lambda value: POSITIVE.fits(value) or (_is_number(value) and value == 0))
WHOLE = Kind("a whole number from 0", _is_whole)
COUNT = Kind("a whole number from 1", lambda value: _is_whole(value) and value > 0)
TRUTH = Kind("true or false", _of(bool))
TEXT = Kind("text", _of(str))
MAPPING = Kind("a mapping", _of(dict))
LIST = Kind("a list", _of(list))

Shape = dict[str, Kind]


def optional(kind: Kind) -> Kind:
    """`kind`, or null."""
    return Kind(f"null or {kind.what}", lambda value: value is None or kind.fits(value))


def check_shape(where: str, node: Any, shape: Shape) -> None:
    """Raise `ShapeError` unless `node` is a mapping with every key of `shape`, each value of its kind."""
    if not isinstance(node, dict):
        raise ShapeError(f"{where} is not a mapping")
    for key, kind in shape.items():
        if key not in node:
            raise ShapeError(f"{where} has no '{key}'")
        check(where, key, node[key], kind)


def check(where: str, key: Any, value: Any, kind: Kind) -> None:
    """Raise `ShapeError` unless `value` is of `kind`."""
    if not kind.fits(value):
        raise ShapeError(f"{where} has {key} = {value!r:.40}, which is not {kind.what}")


def check_all(where: str, node: Any, kind: Kind) -> None:
    """Raise `ShapeError` unless `node` is a mapping or a list all of whose values are of `kind`."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        raise ShapeError(f"{where} is not a mapping")
    if not all(map(kind.fits, node.values())):  # a long experiment has a million measures: one pass for the whole
        for key, value in node.items():
            check(where, key, value, kind)


def one_line(text: object) -> str:
    """An error or a text on one line."""
    return " ".join(str(text).split())
