"""A table as plain cells, which the terminal, the report and W&B each draw in their own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Roles:
    """The roles of one layer, one per seed."""

    roles: list[str]
    words: bool  # written as words where there is room, else as letters


@dataclass(frozen=True)
class Link:
    """A name that a page links to a file, whose path is relative to the page."""

    text: str
    path: str


TableCell = str | Roles | Link


@dataclass(frozen=True)
class Section:
    """A table with a title, and notes under it."""

    title: str
    columns: list[str]
    rows: Sequence[Sequence[TableCell]]
    notes: list[str] = field(default_factory=list)
    # column head → its key in the glossary (null: none), where it differs from the usual one for that head;
    # where the first column has no head, also the names of rows
    terms: Mapping[str, str | None] = field(default_factory=dict)
