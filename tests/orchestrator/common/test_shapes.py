"""A dataclass from JSON: every field's type is checked, and the first wrong value is named by its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from orchestrator.common.shapes import NUMBER, ShapeError, from_json


@dataclass(frozen=True)
class Part:
    size: int
    share: float


@dataclass(frozen=True)
class Whole:
    name: str
    parts: list[Part]
    by_name: dict[str, Part]
    offsets: dict[str, Annotated[float, NUMBER] | None]
    last: Part | None
    is_new: bool = False


PART = {"size": 3, "share": 0.5}
DOCUMENT: dict[str, Any] = {
    "name": "a", "parts": [PART], "by_name": {"b": PART}, "offsets": {"x": -1.5, "y": None}, "last": None, "other": 1,
}  # fmt: skip


def test_fields_are_made_and_other_keys_ignored() -> None:
    part = Part(3, 0.5)
    assert from_json(Whole, DOCUMENT) == Whole("a", [part], {"b": part}, {"x": -1.5, "y": None}, None)
    assert from_json(Whole, DOCUMENT | {"last": PART, "is_new": True}).last == part


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": 3}, "its content has name = 3"),
        ({"parts": {}}, r"its content has parts = \{\}"),
        ({"parts": [PART, {"size": 1}]}, r"parts\.1 has no 'share'"),
        ({"parts": [PART | {"size": 1.5}]}, r"parts\.0 has size = 1\.5"),
        ({"by_name": {"b": PART | {"share": -0.5}}}, r"by_name\.b has share = -0\.5"),
        ({"by_name": {"b": 3}}, r"by_name\.b is not a mapping"),
        ({"offsets": {"x": float("nan")}}, "offsets has x = nan"),
        ({"last": {"size": True, "share": 1.0}}, "last has size = True"),
        ({"is_new": 0}, "is_new = 0"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ShapeError, match=key):
        from_json(Whole, DOCUMENT | change)


def test_a_field_without_a_default_is_needed() -> None:
    with pytest.raises(ShapeError, match="its content has no 'last'"):
        from_json(Whole, {key: value for key, value in DOCUMENT.items() if key != "last"})
