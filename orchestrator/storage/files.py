"""Files that are written atomically, and their permissions."""

from __future__ import annotations

import os
import platform
import stat
import threading
from contextlib import suppress
from pathlib import Path

from orchestrator.common.errors import UserError


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` atomically. Raises `UserError` where the disk refuses; the old file then remains."""
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error}): make room, or choose a writable place.") from error


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without its newline, which a process that was killed had not written whole."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def keep_as_replaced(path: Path) -> None:
    """Rename a file that will be written again to `<name>.replaced`, or `<name>.replaced-1` where there is that, …"""
    aside, attempt = path.with_name(f"{path.name}.replaced"), 0
    while aside.exists():
        attempt += 1
        aside = path.with_name(f"{path.name}.replaced-{attempt}")
    path.replace(aside)


def permit_as_umask(directory: Path) -> None:
    """Give everything in `directory` the permissions of new files under the user's umask.

    Libraries that write through temporary files leave them readable by their owner alone: no one else in a group could
    resume from them.
    """
    probe = directory / ".umask"
    probe.mkdir(exist_ok=True)
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    for path in directory.rglob("*"):
        wanted = mode if path.is_dir() else mode & 0o666
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != wanted:
            path.chmod(wanted)
