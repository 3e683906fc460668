"""The cells again and again: in place on a terminal, a line for every change in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from orchestrator.monitoring.alerts import Alert, alerts
from orchestrator.monitoring.cells import CellStatus, experiment_lock, read_status
from orchestrator.monitoring.view import View, line, said
from orchestrator.storage.locks import is_held

GOING = ("running", "queued", "preempted", "suspended", "zombie")  # cells that something may still become of by itself
INTERVAL = 1.0  # seconds between two looks
EFFORT = 0.2  # largest share of a core that looking may take


class Screen:
    """Shows an experiment's cells, as often as `refresh` is called and is due."""

    def __init__(self, directory: Path, console: Console) -> None:
        self.directory, self.console = directory, console
        self.name = directory.resolve().name
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.cells: list[CellStatus] = []
        self.shown: dict[str, tuple[Any, ...]] = {}
        self.told: set[Alert] = set()
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
        """Look again if it is time, or by `force` and then at all cells; return what was last seen."""
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
            news = [alert for alert in alerts(cell) if alert not in self.told]
            self.told.update(news)
            for text in [*lines, *map(said, news)]:
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()


def watch(directory: Path, console: Console) -> list[CellStatus]:
    """Show the experiment until nothing runs or waits in it any more; return how its cells ended.

    Raises `UserError` as `read_status` does.
    """
    with Screen(directory, console) as screen:
        while True:
            launching = is_held(experiment_lock(directory))  # asked first: what it did last is then seen below
            if not any(cell.state in GOING for cell in screen.refresh()) and not launching:
                return screen.cells
            time.sleep(max(0.05, screen.due - time.monotonic()))


def outcome(cells: Sequence[CellStatus]) -> int:
    """How they ended as an exit code: 0 all done, 2 where one failed, is lost or missing, else 130: stopped before."""
    states = {cell.state for cell in cells}
    return 2 if states & {"failed", "lost", "missing", "zombie"} else 0 if states == {"done"} else 130
