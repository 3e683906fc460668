"""The comparison of the cells that have finished so far, made anew in the background while more of them do."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import printable

if TYPE_CHECKING:
    from orchestrator.analysis import Comparison

PAUSE = 10.0  # seconds at least between two comparisons


class SoFar:
    """The newest comparison, which is held in memory; it writes nothing, so it may be made while others compare."""

    def __init__(self, directory: Path, effort: float) -> None:
        """`effort`: the largest share of a core that it may take."""
        self.directory, self.effort = directory, effort
        self.shown: dict[str, Any] = {}  # what the page shows of it
        self._comparison: Comparison | None = None
        self._of: Hashable = None  # what it was made of
        self._due = 0.0
        self._thread: threading.Thread | None = None
        self._page: tuple[Comparison, str] | None = None
        self._drawing = threading.Lock()

    def refresh(self, finished: Hashable) -> None:
        """Begin to compare in the background where that is due and other cells or readings have `finished`."""
        idle = self._thread is None or not self._thread.is_alive()
        if finished and finished != self._of and idle and time.monotonic() >= self._due:
            self._of = finished
            self._thread = threading.Thread(target=self._compare, daemon=True)
            self._thread.start()

    def page(self) -> str | None:
        """The whole report of what has finished so far; None before there is a comparison."""
        comparison = self._comparison
        if comparison is None:
            return None
        from orchestrator.analysis.report.so_far import page

        with self._drawing:
            if self._page is None or self._page[0] is not comparison:
                self._page = comparison, page(comparison)
            return self._page[1]

    def _compare(self) -> None:
        started = time.monotonic()
        try:
            from orchestrator.analysis.comparison import compute  # pandas and scipy: seconds
            from orchestrator.analysis.report.so_far import summary

            comparison = compute(self.directory)
            self.shown = {"html": summary(comparison), "pairs": len(comparison.pairs)}
            self._comparison = comparison
        except UserError as error:
            self.shown = self.shown | {"problem": printable(str(error))}
        except Exception as error:  # perhaps of a file that was being replaced: it is tried again
            reason = f"{type(error).__name__}: {error}"
            self.shown = self.shown | {"problem": printable(f"The finished cells cannot be compared now: {reason}")}
            self._of = None
        self._due = time.monotonic() + max(PAUSE, (time.monotonic() - started) / self.effort)
