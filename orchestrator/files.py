"""Files that are written whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from orchestrator.errors import UserError


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` in one stroke. Raises `UserError` where the disk refuses; the old file then stands."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error}): make room, or choose a writable place.") from error
