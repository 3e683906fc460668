"""A pickle that runs code when it is loaded."""

from __future__ import annotations

from pathlib import Path


class Payload:
    """Pickled, it makes the file `trap` when it is loaded."""

    def __init__(self, trap: Path | str) -> None:
        self.trap = str(trap)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.trap, "w")
