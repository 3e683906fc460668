"""A table of the summary as plain cells, drawn alike by the terminal and by the report."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Roles:
    """The roles of one layer, one per seed."""

    roles: list[str]
    words: bool


@dataclass(frozen=True)
class Section:
    """A table with a title, and sentences under it."""

    title: str
    columns: list[str]
    rows: list[list[str | Roles]]
    notes: list[str] = field(default_factory=list)
