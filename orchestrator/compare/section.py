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


def number(value: float | None, digits: int) -> str:
    """Fixed-point, or a dash for what is not known."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int) -> str:
    """Fixed-point with its sign."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def span(low: float | None, high: float | None, digits: int, *, plus: bool = False) -> str:
    """An interval as `low … high`."""
    write = signed if plus else number
    return "–" if low is None or high is None else f"{write(low, digits)} … {write(high, digits)}"
