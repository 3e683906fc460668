"""A stream for jobs that print to one terminal at the same time."""

from __future__ import annotations

import io
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TextIO

from orchestrator.storage import locks

LONG = 5  # lines; a longer text is a report, which gets a heading
WAIT_SECONDS = 5.0  # longest wait for another job's text


class PrefixedStream(io.TextIOBase):
    """Writes each line to `stream` with `label` before it, or a long text in one piece under a heading.

    Jobs take turns by locking the file `lock`.
    """

    def __init__(self, stream: TextIO, label: str, lock: Path) -> None:
        self._stream, self._label, self._lock = stream, label, lock

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        lines = text.splitlines(keepends=True)
        if len(lines) > LONG:
            lines.insert(0, f"\n── {self._label} ──\n")
        else:
            lines = [f"{self._label}: {line}" if line.strip() else line for line in lines]
        with ExitStack() as stack:
            with suppress(OSError):  # without the lock, texts may mix, but none is lost
                locks.acquire(stack.enter_context(self._lock.open("a")).fileno(), WAIT_SECONDS)
            self._stream.write("".join(lines))
            self._stream.flush()
        return len(text)
