"""Show many experiments as a table in the terminal, legible at 100 columns, as a page and as CSV."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import shorten

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.formatting import low_to_high, number
from orchestrator.analysis.report.render import render
from orchestrator.analysis.sections.section import Link, Section, TableCell
from orchestrator.analysis.summary import VERDICTS
from orchestrator.analysis.survey import CALLED, ArmSummary, frame
from orchestrator.common.formatting import signed
from orchestrator.experiments.decision import ALPHA, FEWEST_PAIRS
from orchestrator.storage.files import write_whole

QUESTION = 50  # characters of it in a terminal
UNREAD = "not read"
COLUMNS = ["experiment", "question", "arm", "n", "Δ (95 %)", "q", "verdict", "budget b / a (95 %)", "conserved",
           "centre shift (95 %)", "lines"]  # fmt: skip
TERMS = {
    "Δ (95 %)": "delta", "budget b / a (95 %)": "conservation", "conserved": "conservation",
    "centre shift (95 %)": "centre",
}  # fmt: skip


def print_overview(arms: list[ArmSummary], skipped: list[Path], console: Console) -> None:
    """Print a row per experiment and arm, then problems, notes, and the paths that held no experiment."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("experiment", ratio=1, min_width=16, overflow="fold")
    table.add_column("arm", max_width=12, overflow="fold")
    for name in ("n\nlines", "Δ test loss\n95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict\nq", max_width=12)
    table.add_column("budget b / a\nverdict", max_width=12)
    table.add_column("centre shift\n95 % interval", justify="right", no_wrap=True)
    before = None
    for arm in arms:
        table.add_row(*_terminal_row(arm, first=arm.directory != before))
        before = arm.directory
    console.print()
    console.print(table)
    for arm in arms:
        if arm.problem:
            console.print(Padding(Text(f"{arm.experiment}: {arm.problem}", style="red"), (0, 0, 0, 1)))
    for note in notes(arms, skipped):
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 1)))


def notes(arms: list[ArmSummary], skipped: list[Path]) -> list[str]:
    """Return notes on false verdicts, on arms without q, on the columns and on skipped paths."""
    tests = [arm for arm in arms if arm.testable]
    called = sum(arm.verdict in CALLED for arm in tests)
    kept = sum(arm.q is not None and arm.q <= ALPHA for arm in tests)
    untested = sum(arm.problem is None and arm.arm is not None for arm in arms) - len(tests)
    found = []
    if tests:
        found.append(
            f"{called} of {len(tests)} arms are called better or worse at {ALPHA}; if no arm differed, at most "
            f"{ALPHA * len(tests):.3g} would be on average. Of the {kept} arms with q ≤ {ALPHA} at most about "
            f"{ALPHA:.1%} are expected to be false (Benjamini-Hochberg)."
        )
    if untested:
        found.append(
            f"{untested} arms have fewer than {FEWEST_PAIRS} seed pairs: too few to be called, so they have no q."
            if untested > 1
            else f"1 arm has fewer than {FEWEST_PAIRS} seed pairs: too few to be called, so it has no q."
        )
    newest = max((arm.definitions for arm in arms if arm.definitions is not None), default=None)
    if older := [arm for arm in arms if arm.definitions is not None and arm.definitions != newest]:
        named = ", ".join(dict.fromkeys(f"{arm.experiment} (version {arm.definitions})" for arm in older))
        found.append(
            f"Budgets and centres of {named} follow older definitions than the others' (version {newest}) and cannot "
            "be compared with them: the experiment's own command reads its kept checkpoints again."
        )
    found.append(
        "Δ: test loss minus the baseline's in nats/token, lower is better. Budget: FFN positions above the robust "
        "threshold beyond those by chance; its centre goes from 0 (first layer) to 1 (last). n: seed pairs. Lines: of "
        "`expect`, delivered / all."
    )
    return found + ([f"No experiments, skipped: {', '.join(map(str, skipped))}."] if skipped else [])


def write_csv(arms: list[ArmSummary], path: Path) -> None:
    """Write every field of every arm, with every digit."""
    write_whole(path, frame(arms).to_csv(index=False))


def write_html(arms: list[ArmSummary], skipped: list[Path], path: Path) -> None:
    """Write the terminal's table as a page with sortable columns and a link to each experiment's report."""
    section = Section(
        "Experiments", COLUMNS, [_page_row(arm, path.parent) for arm in arms], notes(arms, skipped), TERMS
    )
    write_whole(path, render("overview.html.j2", section=section))


def _page_row(arm: ArmSummary, home: Path) -> list[TableCell]:
    """Return the arm's row of the page, whose link to the report is relative to the directory `home`."""
    report = Path(arm.directory).resolve() / "comparison/report.html"
    name = Link(arm.experiment, os.path.relpath(report, home.resolve())) if report.is_file() else arm.experiment
    if arm.problem:
        return [name, arm.problem, *["–"] * (len(COLUMNS) - 3), UNREAD]
    return [
        name, arm.question, arm.arm or "–", str(arm.n), _within(signed(arm.delta, 4), arm.low, arm.high, 4, plus=True),
        number(arm.q, 3), arm.verdict, _within(number(arm.ratio, 2), arm.ratio_low, arm.ratio_high, 2), arm.budget,
        _within(signed(arm.centre_shift, 2), arm.centre_low, arm.centre_high, 2, plus=True),
        f"{arm.delivered} of {arm.expected}" if arm.expected else "–",
    ]  # fmt: skip


def _within(value: str, low: float | None, high: float | None, digits: int, *, plus: bool = False) -> str:
    """Write the value, and its interval in parentheses on the next line."""
    return value if low is None else f"{value}\n({low_to_high(low, high, digits, plus=plus)})"


def _terminal_row(arm: ArmSummary, *, first: bool) -> list[Text]:
    """Return the arm's row of the terminal; only the experiment's first arm has its name and question."""
    name = Text(arm.experiment if first else "", "bold")
    if first and arm.question:
        name.append(f"\n{shorten(arm.question, QUESTION, placeholder=' …')}", "not bold dim")
    if arm.problem:
        return [name, *[Text()] * 3, Text(UNREAD, style=VERDICTS["worse"])]
    return [
        name,
        Text(arm.arm or "–"),
        Text(f"{arm.n}\n{f'{arm.delivered}/{arm.expected}' if first and arm.expected else ''}"),
        Text(f"{signed(arm.delta, 4)}\n{low_to_high(arm.low, arm.high, 4, plus=True)}"),
        Text.assemble((arm.verdict, VERDICTS.get(arm.verdict, "")), "\n", (number(arm.q, 3), "dim")),
        Text.assemble(number(arm.ratio, 2), "\n", (arm.budget, VERDICTS.get(arm.budget, ""))),
        Text(f"{signed(arm.centre_shift, 2)}\n{low_to_high(arm.centre_low, arm.centre_high, 2, plus=True)}"),
    ]
