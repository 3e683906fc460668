"""Parts of a terminal page: tables that fit, labelled lines, numbers and bars."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

EIGHTHS = " ▏▎▍▌▋▊▉█"
BAR = 5  # columns of a full bar
LONG = 30  # layers from which the header is repeated below the table


@dataclass(frozen=True)
class Column:
    """One column of the table of layers."""

    name: str
    cell: Callable[[Any], Text | str]  # of a layer, or of a pair of them
    keep: int  # priority: a narrow terminal drops the lowest first
    right: bool = True
    meaning: str = ""  # printed below the table


@dataclass(frozen=True)
class FittedTable:
    """A table of layers without the least important columns that do not fit, and the meaning of the others."""

    layers: Sequence[Any]
    columns: Sequence[Column]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = list(self.columns)
        while _width(table := self._table(columns), console, options) > options.max_width and len(columns) > 1:
            columns.remove(min(columns, key=lambda column: column.keep))
        yield table
        meanings = [f"{column.name}: {column.meaning}" for column in columns if column.meaning]
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
    """Columns of the terminal that the whole table takes."""
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
    """Label → lines as a grid; a label without lines is left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for label, lines in blocks.items():
        for index, line in enumerate(lines):
            grid.add_row("" if index else label, line)
    return grid


def printable(sentence: str) -> str:
    """The sentence on one line, control characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence)


def number(value: float | None, form: str) -> Text | str:
    return dash() if value is None else format(value, form)


def dash() -> Text:
    return Text("–", "dim")


def bar(value: float | None, largest: float, form: str) -> Text:
    """A bar as long as the share of `largest`, to an eighth of a column, and the number."""
    if value is None:
        return dash()
    whole, eighth = divmod(round(value / largest * BAR * 8) if largest else 0, 8)
    drawn = "█" * whole + (EIGHTHS[eighth] if eighth else "")
    return Text.assemble((f"{drawn:<{BAR}} ", "grey58"), format(value, form))


def beside(values: Mapping[str, float | None], key: str) -> Text:
    """A count, and the count expected by chance."""
    count, expected = values[key], values[f"{key}_expected"]
    if count is None:
        return dash()
    return Text.assemble((f"{count:,}", "bold"), (" / –" if expected is None else f" / {expected:,.1f}", "dim"))


def ranges(indices: Iterable[int], mark: str = "") -> str:
    """`0, 3–5` for 0, 3, 4, 5, with `mark` before each range."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0])]
    return ", ".join(mark + (str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}") for run in runs)


def counted(count: int, noun: str) -> str:
    """The count with its noun: `1 layer`, `8 layers`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def big(count: int) -> str:
    """The count in thousands, millions or billions: `478.2M`."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
