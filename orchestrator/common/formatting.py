"""Format a terminal's tables and bars, and numbers, durations and sizes in readable units."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

EIGHTHS = " ▏▎▍▌▋▊▉█"
BAR = 5  # width of a full bar, columns
DURATIONS = (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
SIZES = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
LONG = 30  # most layers without a second header below the table


@dataclass(frozen=True)
class Column:
    """One column of the table of layers."""

    name: str
    cell: Callable[[Any], Text | str]  # of a layer, or of a pair of them
    keep: int  # priority; a narrow terminal drops the lowest first
    right: bool = True
    meaning: str = ""  # printed below the table


@dataclass(frozen=True)
class FittedTable:
    """A table of layers that drops its least important columns until it fits, with the meaning of the others."""

    layers: Sequence[Any]
    columns: Sequence[Column]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = list(self.columns)
        while _width(table := self._table(columns), console, options) > options.max_width and len(columns) > 1:
            columns.remove(min(columns, key=lambda column: column.keep))
        yield table
        meanings = [f"{column.name}: {column.meaning}" for column in columns if column.meaning]
        if meanings:
            yield Text("\n" + " · ".join(meanings), "dim")

    def _table(self, columns: Sequence[Column]) -> Table:
        table = Table(box=None, padding=(0, 1), pad_edge=False, show_footer=len(self.layers) > LONG)
        table.header_style = table.footer_style = "dim"
        for c in columns:
            table.add_column(c.name, c.name, justify="right" if c.right else "left", no_wrap=True)
        for layer in self.layers:
            table.add_row(*(c.cell(layer) for c in columns))
        return table


def _width(table: Table, console: Console, options: ConsoleOptions) -> int:
    """Return the width of the whole table in columns of the terminal."""
    lines = console.render_lines(table, options.update(max_width=10_000), pad=False)
    return max(len("".join(segment.text for segment in line).rstrip()) for line in lines)


def page(*parts: RenderableType) -> Group:
    """The parts with an empty line between them."""
    return Group(*[line for part in parts for line in (part, Text())][:-1])


def plain_table(names: Iterable[str], left: Collection[str] = (), gap: int = 2) -> Table:
    """A table without lines, its columns `gap` apart and aligned right but for those in `left`."""
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def labelled(blocks: Mapping[str, Sequence[Text]]) -> Table:
    """Lay out label → lines as a grid, without labels that have no lines."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for label, lines in blocks.items():
        for index, line in enumerate(lines):
            grid.add_row("" if index else label, line)
    return grid


def printable(sentence: str) -> str:
    """Return the sentence on one line, with control characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence)


def number(value: float | None, form: str) -> Text | str:
    return dash() if value is None else minus(format(value, form))


def minus(text: str) -> str:
    """Write a number with the sign − in place of a hyphen."""
    return text.replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """Write as fixed-point with its sign, which a value that rounds to zero lacks; a dash where it is unknown."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:+z.{digits}f}"
    return minus(text) if float(text) else text[1:]


def dash() -> Text:
    return Text("–", "dim")


def bar(value: float | None, largest: float, form: str) -> Text:
    """Draw a bar for the value's share of `largest`, to an eighth of a column, and write the number."""
    if value is None:
        return dash()
    whole, eighth = divmod(round(value / largest * BAR * 8) if largest else 0, 8)
    drawn = "█" * whole + (EIGHTHS[eighth] if eighth else "")
    return Text.assemble((f"{drawn:<{BAR}} ", "grey58"), format(value, form))


def beside(values: Mapping[str, float | None], key: str) -> Text:
    """Write a count and the count expected by chance."""
    count, expected = values[key], values[f"{key}_expected"]
    if count is None:
        return dash()
    return Text.assemble((f"{count:,}", "bold"), (" / –" if expected is None else f" / {expected:,.1f}", "dim"))


def ranges(indices: Iterable[int], mark: str = "") -> str:
    """Write 0, 3, 4, 5 as `0, 3–5`, with `mark` before each range."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0])]
    return ", ".join(mark + (str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}") for run in runs)


def counted(count: int, noun: str) -> str:
    """Write a count with its noun: `1 layer`, `8 layers`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def big(count: int) -> str:
    """Write a large count as `478.2M`."""
    for one, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= one:
            return f"{count / one:.1f}{unit}"
    return str(count)


def duration(seconds: float) -> str:
    """Write seconds as `3.2 days`: in the largest unit of which there are at least two."""
    for unit, one in DURATIONS:
        if seconds >= 2 * one:
            return f"{figures(seconds / one)} {unit}"
    return f"{seconds:.2g} seconds"


def roughly(seconds: float) -> str:
    """Write an estimate of seconds in two significant figures: `11 minutes`."""
    for unit, one in DURATIONS:
        if seconds >= 2 * one:
            return f"{float(f'{seconds / one:.2g}'):,g} {unit}"
    return f"{seconds:.2g} seconds"


def work(seconds: float, unit: str) -> str:
    """Write seconds as `1,234 GPU-hours`; under an hour, as minutes."""
    return f"{figures(seconds / 3600)} {unit}-hours" if seconds >= 3600 else f"{figures(seconds / 60)} {unit}-minutes"


def size(count: float) -> str:
    """Write bytes in SI units: `6.1 GB`."""
    for unit, one in SIZES:
        if count >= one:
            return f"{figures(count / one)} {unit}"
    return f"{count:.0f} bytes"


def figures(value: float) -> str:
    """Write two significant digits under 1, one decimal under 100, none above."""
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
