"""File locks that the kernel drops when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import UserError

POLL_SECONDS = 0.2


def never() -> bool:
    return False


@contextmanager
def hold(path: Path, *, wait: bool = True, give_up: Callable[[], bool] = never) -> Iterator[bool]:
    """Hold the lock for the length of the block; yields whether it was got.

    Without `wait` it is got now or not at all; with it, when it is free or `give_up` says to stop waiting.
    Raises `UserError` where the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error}): choose a writable place, or make this one so.") from error
    with file:
        while not (got := _try(file.fileno(), fcntl.LOCK_EX)) and wait and not give_up():
            time.sleep(POLL_SECONDS)
        yield got


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock at this moment. Needs no permission to write."""
    try:
        file = path.open()
    except OSError:
        return False
    with file:
        return not _try(file.fileno(), fcntl.LOCK_SH)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
