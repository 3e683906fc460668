"""How one of several jobs speaks on the terminal that they share: who it is on every line, a report in one piece."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from rich.console import Console


class Voice(io.TextIOBase):
    """A stream over `stream` that begins every line with `prefix`, but not those of a block, which has a heading.

    `turn()` is held for each write, so that what is written at once stays together.
    """

    def __init__(self, stream: TextIO, prefix: str, turn: Callable[[], AbstractContextManager[None]]) -> None:
        self.title = prefix.rstrip(": ")  # of its blocks
        self._stream, self._prefix, self._turn, self._in_block = stream, prefix, turn, False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._in_block:
            said = f"\n── {self.title} ──\n{text}"
        else:
            said = "".join(self._prefix + line if line.strip() else line for line in text.splitlines(keepends=True))
        with self._turn():
            self._stream.write(said)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    @contextmanager
    def block(self) -> Iterator[None]:
        """What is written meanwhile is one block."""
        self._in_block = True
        try:
            yield
        finally:
            self._in_block = False


@contextmanager
def one_piece(console: Console) -> Iterator[None]:
    """Print what the block prints at its end and at once, so that nobody speaks in between."""
    if isinstance(console.file, Voice):
        with console.file.block(), console:
            yield
    else:
        with console:
            yield
