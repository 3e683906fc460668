"""File locks, which the kernel releases when their holder dies."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.common.errors import UserError

POLL_SECONDS = 0.2
SHORT_POLL_SECONDS = 0.01  # for locks that are held only for a write


def never() -> bool:
    return False


@contextmanager
def hold(path: Path, *, wait: bool = True, give_up: Callable[[], bool] = never) -> Iterator[bool]:
    """Hold the lock during the block; yields True where it was acquired.

    Waits until it is free or `give_up` returns True; without `wait` it tries once. On a file system without locks every
    process acquires it. Raises `UserError` where the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error}): choose a writable place, or make this one so.") from error
    with file:
        while not (got := _try(file.fileno(), fcntl.LOCK_EX) is not False) and wait and not give_up():
            time.sleep(POLL_SECONDS)
        if got:
            file.truncate(0)
            file.write(f"{platform.node()} {os.getpid()}")
            file.flush()
        yield got


def silence(path: Path, seconds: float) -> Callable[[], bool]:
    """A `give_up` that returns True once no holder has taken or touched the lock for `seconds`.

    By this process's own clock, as those of other machines may differ.
    """
    seen, since = 0, time.monotonic()

    def is_silent() -> bool:
        nonlocal seen, since
        if (now := path.stat().st_mtime_ns) != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > seconds

    return is_silent


def of_launcher(experiment_dir: Path) -> Path:
    """The file that the launcher of an experiment keeps locked."""
    return experiment_dir / ".lock"


def holder(path: Path) -> int | None:
    """The id of the process on this machine that holds the lock; None where none does."""
    if not is_held(path):
        return None
    host, _, pid = path.read_text(encoding="utf-8").rpartition(" ")
    return int(pid) if host == platform.node() and pid.isdigit() else None


def is_held(path: Path) -> bool | None:
    """True where a process holds the lock; None where that is unknown, as without locks. Needs no write permission."""
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        return False
    except OSError:  # such as too many open files, which says nothing about the holder
        return None
    with file:
        got = _try(file.fileno(), fcntl.LOCK_SH)
        return None if got is None else not got


def acquire(descriptor: int, patience: float) -> bool:
    """Lock an open file within `patience` seconds; False where another process still has it locked."""
    deadline = time.monotonic() + patience
    while _try(descriptor, fcntl.LOCK_EX) is False:
        if time.monotonic() > deadline:
            return False
        time.sleep(SHORT_POLL_SECONDS)
    return True


def _try(descriptor: int, kind: int) -> bool | None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True
