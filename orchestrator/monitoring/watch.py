"""Following an experiment: redrawn in place on a terminal, or a line for every change in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from orchestrator.common.errors import INTERRUPTED
from orchestrator.monitoring.alerts import Alert, alerts
from orchestrator.monitoring.cells import CellStatus, read_status
from orchestrator.monitoring.states import SHOWN
from orchestrator.monitoring.view import View, alert_line, line
from orchestrator.storage import locks

INTERVAL = 1.0  # seconds between two refreshes
EFFORT = 0.2  # largest share of a core that refreshing may take


class Screen:
    """A view of an experiment's cells, which `refresh` redraws where that is due."""

    def __init__(self, directory: Path, console: Console, *, live: bool = True) -> None:
        """`live`: redraw in place where the console is a terminal, instead of printing a line for every change."""
        self.directory, self.console = directory, console
        self.name = directory.resolve().name
        self.live = Live(console=console, auto_refresh=False) if live and console.is_terminal else None
        self.cells: list[CellStatus] = []
        self.shown: dict[str, tuple[Any, ...]] = {}
        self.alerted: set[Alert] = set()
        self.due = 0.0

    def __enter__(self) -> Screen:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.refresh(force=True)
        finally:
            if self.live:
                self.live.__exit__(*error)

    def refresh(self, *, force: bool = False) -> list[CellStatus]:
        """Read and show all cells where that is due or `force` is set; return the cells as last read."""
        if not force and time.monotonic() < self.due:
            return self.cells
        started = time.monotonic()
        self.cells = read_status(self.directory)
        if self.live:
            self.live.update(View(self.name, self.cells, cropped=not force), refresh=True)
        else:
            self._print_changes()
        self.due = time.monotonic() + max(INTERVAL, (time.monotonic() - started) / EFFORT)
        return self.cells

    def _print_changes(self) -> None:
        """A line at a new state, every tenth of a cell and every reading; each alert once."""
        for cell in self.cells:
            mark = (cell.state, int(10 * cell.share), cell.reading and cell.reading.step)
            lines = []
            if cell.state not in ("next", "queued") and self.shown.get(cell.cell) != mark:
                self.shown[cell.cell] = mark
                lines.append(line(cell))
            news = [alert for alert in alerts(cell) if alert not in self.alerted]
            self.alerted.update(news)
            for text in [*lines, *map(alert_line, news)]:
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()


def watch(directory: Path, console: Console) -> list[CellStatus]:
    """Show the experiment until nothing in it runs or waits; return the last status of its cells.

    Raises `UserError` as `read_status` does.
    """
    with Screen(directory, console) as screen:
        while True:
            launching = locks.is_held(locks.of_launcher(directory))  # before its last records are read
            if not any(SHOWN[cell.state].is_live for cell in screen.refresh()) and not launching:
                return screen.cells
            time.sleep(max(0.05, screen.due - time.monotonic()))


def outcome(cells: Sequence[CellStatus]) -> int:
    """The exit code: 0 where all are done, 2 where the user must act on one, else 130 (stopped before its end)."""
    if any(SHOWN[cell.state].is_bad for cell in cells):
        return 2
    return 0 if all(cell.state == "done" for cell in cells) else INTERRUPTED
