"""Show many experiments as a table in the terminal, legible at 100 columns, as a page and as CSV."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.figures.outcomes import outcome_plots
from orchestrator.analysis.formatting import elide, low_to_high, number
from orchestrator.analysis.report.page import figure_parts, heights
from orchestrator.analysis.report.render import render
from orchestrator.analysis.sections.section import Link, Section, TableCell
from orchestrator.analysis.summary import VERDICTS
from orchestrator.analysis.survey import CALLED, ArmSummary, data_of
from orchestrator.analysis.swept import as_text, frame, short_names, swept, together
from orchestrator.common.formatting import counted, signed
from orchestrator.experiments.decision import ALPHA, FEWEST_PAIRS
from orchestrator.storage.files import write_whole

NAME = 16  # least columns of an experiment's name in a terminal
UNREAD = "not read"
FIRST_KEYS = 6  # most keys that stand before the losses on the page
VALUE = 14  # characters of a key's value in a terminal
HEADS = ["experiment", "arm"]
RESULTS = ["n", "test loss (95 %)", "Δ (95 %)", "q", "verdict", "budget b / a (95 %)", "conserved",
           "centre shift (95 %)", "lines", "question"]  # fmt: skip
TERMS = {
    "test loss (95 %)": "heldout", "Δ (95 %)": "delta", "budget b / a (95 %)": "conservation",
    "conserved": "conservation", "centre shift (95 %)": "centre",
}  # fmt: skip
Column = tuple[str, int, Callable[[ArmSummary], Text]]  # head, width, what it shows


def print_overview(arms: list[ArmSummary], skipped: list[Path], console: Console) -> None:
    """Print a row per experiment and arm, then problems, notes, and the paths that held no experiment."""
    columns, left_out = _terminal_columns(arms, console.width)
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, header_style="dim")
    longest = max(len("experiment"), *(len(arm.experiment) for arm in arms))
    room = console.width - sum(width + 1 for _, width, _ in columns)
    table.add_column("experiment", width=max(NAME, min(longest, room)), overflow="fold")
    for head, width, _ in columns:
        table.add_column(head, width=width, overflow="fold")
    before = None
    for arm in arms:
        group = UNREAD if arm.problem else arm.data if arm.loss is not None else None
        if before is not None and group != before[0]:
            table.add_section()
        before = (group,)
        name = Text(arm.experiment, "bold")
        table.add_row(
            name, *([Text(UNREAD, VERDICTS["worse"])] if arm.problem else [show(arm) for *_, show in columns])
        )
    console.print()
    console.print(table)
    for arm in arms:
        if arm.problem:
            console.print(Padding(Text(f"{arm.experiment}: {arm.problem}", style="red"), (0, 0, 0, 1)))
    more = [f"Wider terminals, --html and --csv also show {', '.join(left_out)}."] if left_out else []
    for note in [*notes(arms, skipped), *more]:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 1)))


def _terminal_columns(arms: list[ArmSummary], width: int) -> tuple[list[Column], list[str]]:
    """The columns after the experiment's name that fit, in their order, and the heads of the others."""
    numbers = data_of(arms)
    data: list[Column] = [("data", 4, lambda arm: Text(_data(arm, numbers)))]
    names = short_names(swept(arms), {*HEADS, *RESULTS, "data"})
    groups = together(names, arms)
    ordered = [*(group[0] for group in groups), *(key for group in groups for key in group[1:])]
    keys = [_key_column(key, names[key], arms) for key in ordered]
    results: list[Column] = [
        ("n", 2, lambda arm: Text(str(arm.n))),
        ("test loss\n95 % interval", 15, lambda arm: _two(number(arm.loss, 4), arm.loss_low, arm.loss_high, 4)),
        ("Δ\n95 % interval", 17, lambda arm: _two(signed(arm.delta, 4), arm.low, arm.high, 4, plus=True)),
        ("verdict\nq", 12, _verdict),
    ]
    more: list[Column] = [
        ("budget b / a\nverdict", 12, _budget),
        ("centre shift\n95 % interval", 13,
         lambda arm: _two(signed(arm.centre_shift, 2), arm.centre_low, arm.centre_high, 2, plus=True)),
    ]  # fmt: skip
    arm_name: Column = ("arm", 12, lambda arm: Text(arm.arm or "–"))
    always = [arm_name, *(data if len(numbers) > 1 else []), *results]
    room = width - NAME - sum(column[1] + 1 for column in always)
    fitting: list[Column] = []
    for column in [*keys, *more]:
        if column[1] + 1 <= room:
            fitting.append(column)
            room -= column[1] + 1
    first = [column for column in keys if column in fitting]
    last = [column for column in more if column in fitting]
    left_out = [column[0].partition("\n")[0] for column in [*keys, *more] if column not in fitting]
    return [arm_name, *first, *always[1:], *last], left_out


def _key_column(key: str, name: str, arms: list[ArmSummary]) -> Column:
    def shown(arm: ArmSummary) -> str:
        return elide(as_text(arm, key), VALUE)

    return name, max(len(name), *(len(shown(arm)) for arm in arms)), lambda arm: Text(shown(arm))


def _two(value: str, low: float | None, high: float | None, digits: int, *, plus: bool = False) -> Text:
    return Text(f"{value}\n{low_to_high(low, high, digits, plus=plus) if low is not None else ''}")


def _verdict(arm: ArmSummary) -> Text:
    q = f"\n{number(arm.q, 3)}" if arm.q is not None else ""
    return Text.assemble((arm.verdict, VERDICTS.get(arm.verdict, "")), (q, "dim"))


def _budget(arm: ArmSummary) -> Text:
    value = f"{number(arm.ratio, 2)}\n" if arm.ratio is not None else ""
    return Text.assemble(value, (arm.budget, VERDICTS.get(arm.budget, "")))


def _data(arm: ArmSummary, numbers: Mapping[str | None, int]) -> str:
    """The number of the corpus on which the arm's loss is; a dash where none is known."""
    return "–" if arm.data is None else str(numbers.get(arm.data, "–"))


def notes(arms: list[ArmSummary], skipped: list[Path]) -> list[str]:
    """Return notes on the order, false verdicts, arms without q, the columns and skipped paths."""
    tests = [arm for arm in arms if arm.testable]
    called = sum(arm.verdict in CALLED for arm in tests)
    kept = sum(arm.q is not None and arm.q <= ALPHA for arm in tests)
    untested = sum(arm.is_compared for arm in arms) - len(tests)
    found = ["Lowest test loss first."] if sum(arm.loss is not None for arm in arms) > 1 else []
    if len(numbers := data_of(arms)) > 1:
        found = [
            f"Lowest test loss first on each of {len(numbers)} corpora (the column data): losses on one do not compare "
            "with those on another."
        ]
    if tests:
        found.append(
            f"Called better or worse at {ALPHA}: {called} of {counted(len(tests), 'arm')}; if no arm differed, at most "
            f"{ALPHA * len(tests):.3g} would be on average."
            + f" With q ≤ {ALPHA}: {kept}, of which about {ALPHA:.1%} at most are false (Benjamini-Hochberg)."
            * (kept > 0)
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
        "Test loss: mean over the domains and n seeds, nats/token. Δ: minus that of the experiment's own baseline at "
        "the same seeds. Budget: FFN positions above the robust threshold beyond those by chance; its centre goes from "
        "0 (first layer) to 1 (last). Lines: of `expect`, delivered of all."
    )
    return found + ([f"No experiments, skipped: {', '.join(map(str, skipped))}."] if skipped else [])


def write_csv(arms: list[ArmSummary], path: Path) -> None:
    """Write every field of every arm, and every swept key under its whole name, with every digit."""
    write_whole(path, frame(arms).to_csv(index=False))


def write_html(arms: list[ArmSummary], skipped: list[Path], path: Path) -> None:
    """Write a page: the table, sortable, with links to the reports, and the loss against each swept key."""
    names, numbers = short_names(swept(arms), {*HEADS, *RESULTS, "data"}), data_of(arms)
    first, rest = list(names)[:FIRST_KEYS], list(names)[FIRST_KEYS:]
    data = ["data"] if len(numbers) > 1 else []
    columns = [*HEADS, *(names[key] for key in first), *data, *RESULTS, *(names[key] for key in rest)]
    rows = [[*_page_row(arm, path.parent, first, numbers), *(as_text(arm, key) for key in rest)] for arm in arms]
    drawings = {f"outcome-{place}": drawing for place, drawing in enumerate(outcome_plots(arms))}
    terms = TERMS | dict.fromkeys(names.values())
    section = Section("Experiments", columns, rows, notes(arms, skipped), terms)
    parts = figure_parts(drawings) if drawings else ()
    page = render("overview.html.j2", section=section, drawings=drawings, heights=heights(drawings), parts=parts)
    write_whole(path, page)


def _page_row(arm: ArmSummary, home: Path, keys: Sequence[str], numbers: Mapping[str | None, int]) -> list[TableCell]:
    """Return the arm's row of the page, whose link to the report is relative to the directory `home`."""
    report = Path(arm.directory).resolve() / "comparison/report.html"
    name = Link(arm.experiment, os.path.relpath(report, home.resolve())) if report.is_file() else arm.experiment
    data = [_data(arm, numbers)] if len(numbers) > 1 else []
    if arm.problem:
        return [name, "–", *["–"] * (len(keys) + len(data)), *["–"] * 4, UNREAD, *["–"] * 4, arm.problem]
    return [
        name, arm.arm or "–", *(as_text(arm, key) for key in keys), *data, str(arm.n),
        _within(number(arm.loss, 4), arm.loss_low, arm.loss_high, 4),
        _within(signed(arm.delta, 4), arm.low, arm.high, 4, plus=True), number(arm.q, 3), arm.verdict,
        _within(number(arm.ratio, 2), arm.ratio_low, arm.ratio_high, 2), arm.budget,
        _within(signed(arm.centre_shift, 2), arm.centre_low, arm.centre_high, 2, plus=True),
        f"{arm.delivered} of {arm.expected}" if arm.expected else "–", arm.question,
    ]  # fmt: skip


def _within(value: str, low: float | None, high: float | None, digits: int, *, plus: bool = False) -> str:
    """Write the value, and its interval in parentheses on the next line."""
    return value if low is None else f"{value}\n({low_to_high(low, high, digits, plus=plus)})"
