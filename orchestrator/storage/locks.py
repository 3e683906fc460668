"""File locks that the kernel drops when their holder dies, however it dies."""

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
TURN_SECONDS = 0.01  # the same, where what is waited for takes no longer than that


def never() -> bool:
    return False


@contextmanager
def hold(path: Path, *, wait: bool = True, give_up: Callable[[], bool] = never) -> Iterator[bool]:
    """Hold the lock for the length of the block; yields whether it was got.

    Without `wait` it is got now or not at all; with it, when it is free or `give_up` says to stop waiting. On a
    file system without locks everybody gets it.
    Raises `UserError` where the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
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


def holder(path: Path) -> int | None:
    """The process of this machine that holds the lock; null where none does."""
    if not is_held(path):
        return None
    host, _, pid = path.read_text().rpartition(" ")
    return int(pid) if host == platform.node() and pid.isdigit() else None


def is_held(path: Path) -> bool | None:
    """Whether somebody holds the lock at this moment; null where that cannot be told, as without locks.

    Needs no permission to write.
    """
    try:
        file = path.open()
    except FileNotFoundError:
        return False
    except OSError:  # a network file system's moment, or too many open files: it says nothing of the holder
        return None
    with file:
        got = _try(file.fileno(), fcntl.LOCK_SH)
        return None if got is None else not got


def take(descriptor: int, patience: float) -> bool:
    """Lock an open file, waiting so many seconds at the most; whether nobody else has it locked, as far as is known."""
    deadline = time.monotonic() + patience
    while _try(descriptor, fcntl.LOCK_EX) is False:
        if time.monotonic() > deadline:
            return False
        time.sleep(TURN_SECONDS)
    return True


def _try(descriptor: int, kind: int) -> bool | None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some file systems of clusters
        return None
    return True
