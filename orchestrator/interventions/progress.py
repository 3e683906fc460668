"""Progress of a long command: sentences and a bar on stderr, and the last sentence where it is interrupted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from orchestrator.common.errors import complain


@dataclass(frozen=True)
class Progress:
    """Called as the work goes on."""

    announce: Callable[[str], None] = lambda _: None  # a sentence
    begin: Callable[[int], None] = lambda _: None  # the number of steps
    advance: Callable[[int], None] = lambda _: None  # steps just done


@contextmanager
def shown(name: str, interrupted: Callable[[int, int], str]) -> Iterator[Progress]:
    """Progress on stderr, with a bar in a terminal.

    `interrupted`: the sentence for a block that Ctrl-C or SIGTERM ends, of the steps done and the number of them, which
    is 0 before they begin.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(name, total=None)
        try:
            with _terminable():
                yield Progress(
                    announce=lambda sentence: bar.console.print(
                        sentence, highlight=False, markup=False, soft_wrap=True
                    ),
                    begin=lambda total: bar.reset(task, total=total),
                    advance=lambda count: bar.advance(task, count),
                )
        except KeyboardInterrupt:
            bar.stop()
            complain(interrupted(int(bar.tasks[0].completed), int(bar.tasks[0].total or 0)))
            raise


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside the block the first SIGTERM interrupts as Ctrl-C does, so that everything is tidied up; others wait."""

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
