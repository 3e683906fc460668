"""Checks of values from JSON and YAML files, with a sentence about the first key that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

LARGEST = 1e100  # magnitude of a number: its cube, and the sum of many, is still finite
SMALLEST = 1 / LARGEST  # of one above 0: any ratio is finite
LONGEST = 2**63 - 1  # of a whole number, which tables hold in 64 bits


class ShapeError(ValueError):
    """A file holds a value that it must not; the message names its key, not the file."""


@dataclass(frozen=True)
class Kind:
    """A kind of value, and the test for it."""

    what: str  # its name, as in "is not {what}"
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    """True for numbers up to `LARGEST`; the comparison is false for NaN, and exact for integers of any length."""
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
OF_TYPE = {int: WHOLE, float: AMOUNT, str: TEXT, bool: TRUTH}  # of a dataclass's fields that name no kind

Shape = dict[str, Kind]


def optional(kind: Kind) -> Kind:
    """The kind of null and of values of `kind`."""
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


def from_json(cls: type[T], document: Any, where: str = "") -> T:
    """An instance of a dataclass from a mapping of its fields; other keys are ignored.

    A field's type says what its value must be: a type of `OF_TYPE`, `Annotated[type, kind]`, a list, a mapping, another
    such dataclass, or one of these and None. Raises `ShapeError`, naming the key, for the first value that is not.
    `where`: key of `document` in a larger one.
    """
    if not isinstance(document, dict):
        raise ShapeError(f"{where or 'its content'} is not a mapping")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in document and field.default is MISSING and field.default_factory is MISSING:
            raise ShapeError(f"{where or 'its content'} has no '{field.name}'")
    types = _types_of(cls)  # type: ignore[arg-type]
    return cls(**{name: _value(types[name], document[name], where, name) for name in types if name in document})


def _value(of: Any, value: Any, where: str, key: str) -> Any:
    """Check `value`, which is at `key` of the document at `where`, and convert it to the type `of`."""
    if kind := _kind_of(of):
        check(where or "its content", key, value, kind)
        return value
    arguments = get_args(of)
    if NoneType in arguments:
        return None if value is None else _value(arguments[0], value, where, key)
    at = f"{where}.{key}" if where else key
    if is_dataclass(of):
        return from_json(of, value, at)  # type: ignore[arg-type]
    is_list = get_origin(of) is list
    check(where or "its content", key, value, LIST if is_list else MAPPING)
    inner = arguments[-1]
    if kind := _kind_of(inner):
        check_all(at, value, kind)
        return value
    if is_list:
        return [_value(inner, entry, at, str(index)) for index, entry in enumerate(value)]
    return {name: _value(inner, entry, at, name) for name, entry in value.items()}


@cache
def _types_of(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@cache
def _kind_of(of: Any) -> Kind | None:
    """The kind of a scalar type, or of one that may be None; None for any other type."""
    if get_origin(of) is Annotated:
        return of.__metadata__[0]
    if NoneType in get_args(of):
        kind = _kind_of(get_args(of)[0])
        return optional(kind) if kind else None
    return OF_TYPE.get(of)


def one_line(text: object) -> str:
    """An error or a text on one line."""
    return " ".join(str(text).split())
