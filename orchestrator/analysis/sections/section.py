"""Tables as plain cells, which the terminal, the report and W&B each draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Roles:
    """The roles of one layer, one per seed."""

    roles: list[str]
    words: bool  # true: words where there is room; false: letters


@dataclass(frozen=True)
class Link:
    """A name with a link to a file; the path is relative to the page."""

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
    # column head → its key in the glossary (null: none), where that is not the usual one for the head;
    # in a table without a first head, also row name → key
    terms: Mapping[str, str | None] = field(default_factory=dict)
