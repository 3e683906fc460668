"""The rows of many experiments as a terminal's table, legible at 100 columns, as a page and as CSV."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import shorten

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.across import CALLED, Row, frame, testable
from orchestrator.analysis.report.document import document
from orchestrator.analysis.report.html import table
from orchestrator.analysis.sections.section import Cell, Link, Section
from orchestrator.analysis.statistics import ALPHA, FEWEST_PAIRS
from orchestrator.analysis.summary import VERDICTS
from orchestrator.analysis.wording import number, signed, span
from orchestrator.storage.files import write_whole

QUESTION = 50  # characters of it in a terminal
UNREAD = "not read"
COLUMNS = ("experiment", "question", "arm", "n", "Δ (95 %)", "q", "verdict", "budget b / a (90 %)", "conserved",
           "centre shift (95 %)", "lines")  # fmt: skip
TERMS = {
    "Δ (95 %)": "delta", "budget b / a (90 %)": "conservation", "conserved": "conservation",
    "centre shift (95 %)": "centre",
}  # fmt: skip


def print_overview(rows: list[Row], beside: list[Path], console: Console) -> None:
    """One row per experiment and arm, what to make of so many, and what was no experiment."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("experiment", ratio=1, min_width=16, overflow="fold")
    table.add_column("arm", max_width=12, overflow="fold")
    for name in ("n\nlines", "Δ test loss\n95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict\nq", max_width=12)
    table.add_column("budget b / a\nverdict", max_width=12)
    table.add_column("centre shift\n95 % interval", justify="right", no_wrap=True)
    before = None
    for row in rows:
        table.add_row(*_cells(row, first=row.directory != before))
        before = row.directory
    console.print()
    console.print(table)
    for row in rows:
        if row.problem:
            console.print(Padding(Text(f"{row.experiment}: {row.problem}", style="red"), (0, 0, 0, 1)))
    for note in notes(rows):
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 1)))
    if beside:
        console.print(Text(f" No experiments, skipped: {', '.join(map(str, beside))}.", style="dim"))


def notes(rows: list[Row]) -> list[str]:
    """What the columns are, and how many of the calls chance would make."""
    tests = [row for row in rows if testable(row)]
    called = sum(row.verdict in CALLED for row in tests)
    kept = sum(row.q is not None and row.q <= ALPHA for row in tests)
    silent = sum(row.problem is None and row.arm is not None for row in rows) - len(tests)
    found = []
    if tests:
        found.append(
            f"{called} of {len(tests)} arms are called better or worse at {ALPHA}; were none different, on "
            f"average at most {ALPHA * len(tests):.3g} would be. Of the {kept} with q ≤ {ALPHA} about {ALPHA:.0%} "
            "at most should be false (Benjamini-Hochberg)."
        )
    if silent:
        found.append(
            f"Arms with too few seed pairs to be called either ({FEWEST_PAIRS} are needed), and no part in q: {silent}."
        )
    found.append(
        "Δ: nats/token to the experiment's baseline, lower is better. Budget: saturated positions over the robust "
        "threshold; its centre goes from 0 (first layer) to 1. n: seed pairs. Lines: of `expect`, delivered of all."
    )
    return found


def write_csv(rows: list[Row], path: Path) -> None:
    write_whole(path, frame(rows).to_csv(index=False))


def write_html(rows: list[Row], beside: list[Path], path: Path) -> None:
    """The terminal's table as a page that sorts, each experiment with a link to its report."""
    skipped = [f"No experiments, skipped: {', '.join(map(str, beside))}."] if beside else []
    lines = [_line(row, path.parent) for row in rows]
    section = Section("Experiments", list(COLUMNS), lines, [*notes(rows), *skipped], TERMS)
    write_whole(
        path, document("Experiments", f"<div class='wide'>{table(section, level=1)}</div>", scripts=("tables.js",))
    )


def _line(row: Row, home: Path) -> list[Cell]:
    """The row's cells; its report is named as seen from the directory `home`."""
    report = Path(row.directory).resolve() / "comparison/report.html"
    name = Link(row.experiment, os.path.relpath(report, home.resolve())) if report.is_file() else row.experiment
    if row.problem:
        return [name, row.problem, *["–"] * (len(COLUMNS) - 3), UNREAD]
    return [
        name, row.question, row.arm or "–", str(row.n), _within(signed(row.delta, 4), row.low, row.high, 4, plus=True),
        number(row.q, 3), row.verdict, _within(number(row.ratio, 2), row.ratio_low, row.ratio_high, 2), row.budget,
        _within(signed(row.centre_shift, 2), row.centre_low, row.centre_high, 2, plus=True),
        f"{row.delivered} of {row.expected}" if row.expected else "–",
    ]  # fmt: skip


def _within(value: str, low: float | None, high: float | None, digits: int, *, plus: bool = False) -> str:
    """The value, and under it its interval in parentheses."""
    return value if low is None else f"{value}\n({span(low, high, digits, plus=plus)})"


def _cells(row: Row, *, first: bool) -> list[Text]:
    """Name and question stand at the experiment's first arm."""
    name = Text(row.experiment if first else "", "bold")
    if first and row.question:
        name.append(f"\n{shorten(row.question, QUESTION, placeholder=' …')}", "not bold dim")
    if row.problem:
        return [name, *[Text()] * 3, Text(UNREAD, style=VERDICTS["worse"])]
    return [
        name,
        Text(row.arm or "–"),
        Text(f"{row.n}\n{f'{row.delivered}/{row.expected}' if first and row.expected else ''}"),
        Text(f"{signed(row.delta, 4)}\n{span(row.low, row.high, 4, plus=True)}"),
        Text.assemble((row.verdict, VERDICTS.get(row.verdict, "")), "\n", (number(row.q, 3), "dim")),
        Text.assemble(number(row.ratio, 2), "\n", (row.budget, VERDICTS.get(row.budget, ""))),
        Text(f"{signed(row.centre_shift, 2)}\n{span(row.centre_low, row.centre_high, 2, plus=True)}"),
    ]
