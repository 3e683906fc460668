"""Standard streams that never end a command: not a reader that left, nor a closed terminal, nor a narrow encoding."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


class Lasting(io.TextIOWrapper):
    """A text stream that goes on into nothing once its reader or its terminal is gone, or its disk is full."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            self._go_on()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._go_on()

    def _go_on(self) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())  # also for processes that are started from now on
        os.close(nothing)
        with suppress(OSError):
            super().flush()  # what is left in its buffer


def make_lasting() -> None:
    """Make stdout and stderr of this process `Lasting`, unless something else has replaced them.

    A character that the encoding lacks is shown as a question mark.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the process began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 (it stays open)
        elif type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            lasting = Lasting(
                stream.buffer, stream.encoding, "replace", line_buffering=stream.line_buffering, write_through=True
            )
            setattr(sys, name, lasting)
