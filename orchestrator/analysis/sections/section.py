"""A table of the summary as plain cells, drawn alike by the terminal and by the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Roles:
    """The roles of one layer, one per seed."""

    roles: list[str]
    words: bool


@dataclass(frozen=True)
class Link:
    """A name that a page makes a link of, to a file relative to it."""

    text: str
    path: str


Cell = str | Roles | Link


@dataclass(frozen=True)
class Section:
    """A table with a title, and sentences under it."""

    title: str
    columns: list[str]
    rows: Sequence[Sequence[Cell]]
    notes: list[str] = field(default_factory=list)
    # head → the report's definition of it (null: none), where it does not mean here what it means elsewhere;
    # where the first column has no head, also what stands in it
    terms: Mapping[str, str | None] = field(default_factory=dict)
