"""The cells as a table for a terminal of any width, and as lines for a log."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from orchestrator.common.formatting import Column, counted, dash, number, printable
from orchestrator.forensics.roles.palette import colour, letter
from orchestrator.forensics.roles.routing import STATES
from orchestrator.monitoring.alerts import SEVERITIES, Alert, alerts
from orchestrator.monitoring.cells import CellStatus
from orchestrator.monitoring.states import SHOWN

STYLES = {"critical": "bold red", "warn": "yellow", "note": "dim"}
BAR, GAP = 8, 2  # columns
BLOCKS = "▁▂▃▄▅▆▇█"
GROUP = 6  # layers of a role strip without a gap
NAMED, SEEDS = 3, 6  # most arms, and seeds of one arm, that an alert names; more are counted
ALERTS, FURNITURE = 6, 9  # of a cropped view: most alerts, and lines of headings, gaps and legend


class View:
    """All cells of an experiment: their training, their layers' roles, and their alerts.

    With `cropped`, only as many as the screen holds, first those that ended badly and those that run.
    """

    def __init__(self, name: str, cells: Sequence[CellStatus], comparison: str = "", *, cropped: bool = False) -> None:
        self.name, self.cells, self.comparison, self.cropped = name, cells, comparison, cropped

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        notices = together([alert for cell in self.cells for alert in alerts(cell)])
        notices = notices[: ALERTS if self.cropped else None]
        room, lines = options.max_width, (options.max_height or console.height) - len(notices) - FURNITURE
        shown = _foremost(self.cells, lines) if self.cropped else self.cells
        everything = _draw(shown, [*TRAINING, *LAYERS])
        if _needed(_widths(everything)) <= room:
            tables = [everything]
        else:  # the layers in a table of their own
            shown = _foremost(self.cells, lines // 2) if self.cropped else self.cells
            read = [cell for cell in shown if cell.reading]
            tables = [_draw(shown, TRAINING), *([_draw(read, [CELL, *LAYERS])] if read else [])]
        yield self._heading()
        for table in tables:
            yield Text()
            yield _table(table, room)
        if len(shown) < len(self.cells):
            names = {cell.cell for cell in shown}
            yield Text("and ", "dim").append(_counts([cell for cell in self.cells if cell.cell not in names]))
        if any(cell.reading for cell in shown):
            yield Text()
            yield _legend()
        if notices:
            yield Text()
            yield _alert_table(notices)

    def _heading(self) -> Text:
        share = statistics.fmean(cell.share for cell in self.cells)
        done = f"  {share:.0%} of {counted(len(self.cells), 'cell')}  "
        compared = (f"  comparison {printable(self.comparison)}", "dim") if self.comparison else ""
        return Text.assemble((printable(self.name), "bold"), done, _counts(self.cells), compared)


def line(status: CellStatus) -> str:
    """The cell as one line, for logs that are not a terminal."""
    parts = [f"{printable(status.cell):<24} {status.state:<8} step {status.step}/{status.steps}"]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.3f}")
    if status.heldout is not None:
        parts.append(f"held-out {status.heldout:.3f}")
    if status.reading:
        parts.append(f"roles {status.reading.letters} (step {status.reading.step})")
    return "  ".join(parts)


def alert_line(alert: Alert) -> str:
    """The alert as one line."""
    return f"{printable(alert.cell):<24} {alert.severity}: {sentence(alert.text)}"


def sparkline(values: Sequence[float]) -> str:
    """One block per value, lowest to highest; empty for fewer than two."""
    if len(values) < 2:
        return ""
    low, span = min(values), max(values) - min(values)
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1)) if span else 0] for value in values)


def strip(roles: Sequence[str]) -> Text:
    """One coloured letter per layer, in groups between which it may be folded."""
    text = Text()
    for index, role in enumerate(roles):
        text.append(" " if index and index % GROUP == 0 else "")
        text.append(letter(role), colour(role))
    return text


def _counts(cells: Sequence[CellStatus]) -> Text:
    """`2 running · 1 done`."""
    states = Counter(cell.state for cell in cells)
    parts = [Text(f"{states[state]:,} {state}", shown.style) for state, shown in SHOWN.items() if states[state]]
    return Text(" · ").join(parts)


def _progress(s: CellStatus) -> Text:
    full = round(s.share * BAR)
    return Text.assemble(("━" * full, SHOWN[s.state].style), ("━" * (BAR - full), "grey30"))


def _changed(s: CellStatus) -> Text | str:
    return dash() if s.reading is None or s.reading.changed is None else str(s.reading.changed)


CELL = Column("cell", lambda s: _shortened(s.cell), 99, False)
STRIP = Column("roles", lambda s: strip(s.reading.roles) if s.reading else dash(), 99, False)
TRAINING = [
    CELL,
    Column("state", lambda s: Text(s.state, SHOWN[s.state].style), 98, False),
    Column("progress", _progress, 93, False),
    Column("step", lambda s: f"{s.step}/{s.steps}" if s.steps else str(s.step), 97),
    Column("loss", lambda s: number(s.loss, ".3f"), 96),
    Column("lately", lambda s: Text(sparkline(s.losses), "cyan"), 92, False),
    Column("held-out", lambda s: number(s.heldout, ".3f"), 95),
    Column("left", lambda s: "" if s.left is None else f"{timedelta(seconds=round(s.left))}", 94),
]
LAYERS = [
    Column("read at", lambda s: str(s.reading.step) if s.reading else dash(), 98),
    STRIP,
    Column("changed", _changed, 97),
]
Drawn = dict[Column, list[Text]]  # column → its entry for each cell


def _draw(cells: Sequence[CellStatus], columns: Sequence[Column]) -> Drawn:
    """The texts of a table; rich would read plain strings, such as names with brackets, as markup."""
    return {c: [drawn if isinstance(drawn := c.cell(cell), Text) else Text(drawn) for cell in cells] for c in columns}


def _widths(drawn: Drawn) -> dict[Column, int]:
    """The width that each column needs, which rich would take long to measure for hundreds of rows."""
    return {c: max(cell_len(text) for text in (c.name, *(cell.plain for cell in drawn[c]))) for c in drawn}


def _needed(widths: Mapping[Column, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _table(drawn: Drawn, room: int) -> Table:
    """A row per cell. Where `room` is too small, role strips fold, or the columns of lowest `keep` are left out."""
    widths = _widths(drawn)
    while (excess := _needed(widths) - room) > 0 and len(widths) > 1:
        if widths.get(STRIP, 0) - excess >= GROUP:
            widths[STRIP] = _folded(widths[STRIP], widths[STRIP] - excess)
        else:
            del widths[min(widths, key=lambda column: column.keep)]
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for c, width in widths.items():
        table.add_column(c.name, justify="right" if c.right else "left", no_wrap=c is not STRIP, width=width)
    for row in zip(*(drawn[column] for column in widths), strict=True):
        table.add_row(*row)
    return table


def _folded(width: int, room: int) -> int:
    """The width at which a strip folds into the fewest lines that fit `room`, each with the same number of groups."""
    groups, most = math.ceil((width + 1) / (GROUP + 1)), (room + 1) // (GROUP + 1)
    lines = math.ceil(groups / most)
    return math.ceil(groups / lines) * (GROUP + 1) - 1


def _foremost(cells: Sequence[CellStatus], room: int) -> list[CellStatus]:
    """The `room` most urgent cells, at least one, in their own order."""
    urgency = {state: rank for rank, state in enumerate(SHOWN)}
    chosen = sorted(range(len(cells)), key=lambda index: (urgency[cells[index].state], index))[: max(1, room)]
    return [cells[index] for index in sorted(chosen)]


def _legend() -> Text:
    return Text("   ").join(Text.assemble((letter(state), colour(state)), (f" {state}", "dim")) for state in STATES)


def together(found: Sequence[Alert]) -> list[Alert]:
    """The alerts, worst first; those of several cells with the same text as one."""
    alike: dict[tuple[str, str], list[str]] = {}
    for alert in sorted(found, key=lambda a: SEVERITIES.index(a.severity)):
        alike.setdefault((alert.severity, alert.text), []).append(alert.cell)
    return [Alert(_names(cells), severity, text) for (severity, text), cells in alike.items()]


def _names(cells: Sequence[str]) -> str:
    """`a/seed=0,1, b/seed=0`: the seeds of an arm together; of many arms or seeds only the number."""
    by_arm = groupby(cells, lambda cell: cell.rpartition("/")[0])
    arms = {arm: [cell.rpartition("=")[2] for cell in of_arm] for arm, of_arm in by_arm}
    if len(arms) > NAMED:
        return counted(len(cells), "cell")
    few = all(len(seeds) <= SEEDS for seeds in arms.values())
    return ", ".join(f"{arm}/seed={','.join(s)}" if few else f"{arm} ({len(s)} seeds)" for arm, s in arms.items())


def _alert_table(found: Sequence[Alert]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for alert in found:
        quiet = "dim" if alert.severity == "note" else ""
        text = Text.assemble((f"{printable(alert.cell)}  ", quiet or "bold"), (sentence(alert.text), quiet))
        table.add_row(Text(alert.severity, STYLES[alert.severity]), text)
    return table


def _shortened(cell: str) -> str:
    """The cell's name; of a long arm only the beginning, so that the seed is visible."""
    arm, _, seed = printable(cell).rpartition("/")
    return f"{arm[:23]}…/{seed}" if len(arm) > 24 else f"{arm}/{seed}"


def sentence(text: str) -> str:
    """An alert's first line as one printable line; the lines of a log below it, each on its own."""
    first, *log = text.split("\n  ")
    return "\n  ".join([printable(" ".join(first.split())), *(printable(" ".join(line.split())) for line in log)])
