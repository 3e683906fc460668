"""The lease of a cell: at most one attempt runs it, sends heartbeats, and stops writing once a later one has started.

An attempt is a file of the cell, `attempts/<number>.json`, which only one process on any machine can create. Its holder
keeps the file locked, which shows every process on the same machine that it is alive, and touches it regularly (the
heartbeat), which shows all others. The highest number owns the cell: an attempt that finds a higher one writes nothing
more. Writing and starting an attempt exclude each other by a lock, so that no superseded attempt is about to write.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import IO

from orchestrator.common.errors import UserError
from orchestrator.storage import locks

HEARTBEAT_SECONDS = 10.0
LEASE_SECONDS = 90.0  # without a heartbeat; file systems of clusters show a change up to a minute late
POLL_SECONDS = 0.2
CLOCK_SECONDS = 60.0  # after so long, a file server is asked for its time again
RELEASED = 0.0  # the heartbeat of an attempt that released the cell, seconds since the epoch


class Superseded(Exception):
    """A later attempt owns the cell: this one must not write any more."""


@dataclass(frozen=True)
class Attempt:
    """One attempt to run a cell, as its file records it."""

    number: int  # 1 for the first
    job: str  # the scheduler's job, or the process
    restart: int  # earlier starts of that job
    host: str
    boot: str  # identity of the running kernel; empty where it has none
    pid: int
    path: Path

    def is_here(self) -> bool:
        """True where its process was started under this kernel."""
        return bool(self.boot) and self.boot == _boot()

    def heartbeat(self) -> float:
        """The time of its last heartbeat, seconds since the epoch; `RELEASED` once it has released the cell."""
        return heartbeat_of(self.path.parents[1], self.number)

    def is_alive(self) -> bool:
        """True where its process runs now, as far as this machine can tell."""
        if self.is_here() and (held := locks.is_held(self.path)) is not None:
            return held
        return self._silence() < LEASE_SECONDS

    def is_stale(self) -> bool:
        """True where it has not released the cell and its heartbeat is overdue."""
        return self.heartbeat() > RELEASED and self._silence() > LEASE_SECONDS

    def _silence(self) -> float:
        """Seconds since its last heartbeat, by the file server's clock."""
        experiment = self.path.absolute().parents[3]  # one file server keeps all its cells
        return time.time() + _clock_ahead(experiment, int(time.monotonic() / CLOCK_SECONDS)) - self.heartbeat()


class Lease:
    """An attempt of this process, which owns the cell until a later one starts."""

    def __init__(self, attempt: Attempt, file: IO[str]) -> None:
        self.attempt, self.number, self._file = attempt, attempt.number, file
        self._write_lock, self._waits = _write_lock_of(attempt.path.parents[1]).open("a"), True
        self._next = path_of(attempt.path.parents[1], attempt.number + 1)
        self._ended = threading.Event()
        self._heartbeats = threading.Thread(target=self._send_heartbeats, name="lease", daemon=True)
        self._heartbeats.start()

    @contextmanager
    def writing(self) -> Iterator[Callable[[], None]]:
        """Hold the write lock while the block changes the cell's files, so that no later attempt starts meanwhile.

        Raises `Superseded` where one has started. Yields `check`, which a block calls before each of several changes: a
        later attempt waits only for a time, and starts when this process is frozen for longer.
        """
        if not locks.acquire(self._write_lock.fileno(), LEASE_SECONDS if self._waits else 0.0):
            self._waits = False  # its holder is frozen
        try:
            self.check()
            yield self.check
        finally:
            with suppress(OSError):
                fcntl.flock(self._write_lock, fcntl.LOCK_UN)

    def check(self) -> None:
        """Raise `Superseded` where a later attempt has started."""
        try:
            self._next.open().close()  # opening asks the server, which a cached absence would not
        except OSError:
            return
        raise Superseded(f"Attempt {self.number} of {self.attempt.path.parents[1]} stops: a later one owns the cell.")

    def release(self) -> None:
        """Release the cell, so that the next attempt starts at once."""
        self._ended.set()
        self._heartbeats.join()
        with suppress(OSError):
            os.utime(self.attempt.path, (RELEASED, RELEASED))
        self._file.close()
        self._write_lock.close()

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a full or unreachable disk; the next write reports it
                os.utime(self.attempt.path)


@lru_cache(maxsize=4096)
def _clock_ahead(directory: Path, period: int) -> float:
    """Seconds by which a file server's clock is ahead of this machine's; 0 where nothing may be written."""
    probe = directory / f".clock.{platform.node()}.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime - time.time()
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink()


def path_of(cell_dir: Path, number: int) -> Path:
    """The path of an attempt's file."""
    return cell_dir / "attempts" / f"{number:04d}.json"


def _write_lock_of(cell_dir: Path) -> Path:
    """The lock that a process holds while it writes to the cell or starts an attempt."""
    return cell_dir / "attempts" / ".write.lock"


def newest(cell_dir: Path) -> Attempt | None:
    """The newest attempt, whether or not it still runs; None before the first."""
    for path in sorted((cell_dir / "attempts").glob("[0-9]*.json"), key=lambda p: int(p.stem), reverse=True):
        with suppress(OSError, ValueError, TypeError):
            return Attempt(**json.loads(path.read_text(encoding="utf-8")), path=path)
        return Attempt(int(path.stem), "", 0, "", "", 0, path)  # unreadable: its number and its heartbeat still count
    return None


def heartbeat_of(cell_dir: Path, number: int) -> float:
    """The last heartbeat of an attempt, seconds since the epoch; `RELEASED` where it released the cell, or is gone."""
    try:
        return path_of(cell_dir, number).stat().st_mtime
    except OSError:
        return RELEASED


def is_held(cell_dir: Path) -> bool:
    """True where a process runs the cell now, as far as this machine can tell."""
    attempt = newest(cell_dir)
    return attempt is not None and attempt.is_alive()


def next_number(cell_dir: Path) -> int:
    """The number of the next attempt, unless another process starts one first."""
    attempt = newest(cell_dir)
    return attempt.number + 1 if attempt else 1


@contextmanager
def hold(
    cell_dir: Path,
    job: str = "",
    restart: int = 0,
    *,
    above: int = 0,
    is_gone: Callable[[Attempt], bool] = lambda attempt: False,
    give_up: Callable[[], bool] = locks.never,
) -> Iterator[Lease | None]:
    """Own the cell during the block, after waiting until its owner has ended; yield None where `give_up` came first.

    Does not wait for an earlier run of the same job, which its scheduler has declared dead, or for an attempt for which
    `is_gone` returns True. The new attempt's number is above every other, and above `above`.
    Raises `UserError` where the attempt's file cannot be written.
    """
    lease, seen, since = None, None, time.monotonic()
    while lease is None and not give_up():
        before = newest(cell_dir)
        if (sign := before and (before.number, before.heartbeat())) != seen:
            seen, since = sign, time.monotonic()  # by this process's own clock, as those of other machines may differ
        silent = time.monotonic() - since
        if before is None or _same_job(before, job, restart) or _has_ended(before, silent) or is_gone(before):
            lease = _start(cell_dir, 1 + max(above, before.number if before else 0), job, restart)
        else:
            time.sleep(POLL_SECONDS)
    try:
        yield lease
    finally:
        if lease is not None:
            lease.release()


def _same_job(before: Attempt, job: str, restart: int) -> bool:
    return bool(job) and before.job == job and before.restart < restart


def _has_ended(before: Attempt, silent: float) -> bool:
    """True where its process has ended: it holds no lock, or has released the cell, or is `silent` for too long."""
    if before.is_here() and (held := locks.is_held(before.path)) is not None:
        return not held
    return before.heartbeat() == RELEASED or silent > LEASE_SECONDS


def _start(cell_dir: Path, number: int, job: str, restart: int) -> Lease | None:
    """Start attempt `number`; None where another process was faster."""
    path = path_of(cell_dir, number)
    attempt = Attempt(number, job, restart, platform.node(), _boot(), os.getpid(), path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _write_lock_of(cell_dir).open("a") as write_lock:
            locks.acquire(write_lock.fileno(), LEASE_SECONDS)  # a process that holds it for longer is frozen, or gone
            try:
                file = path.open("x")
            except FileExistsError:
                return None
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error}): make room, or make the directory writable.") from error
    with suppress(OSError):  # without file locks, its heartbeat alone shows that it is alive
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        json.dump({key: value for key, value in asdict(attempt).items() if key != "path"}, file)
        file.flush()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): make room.") from error
    return Lease(attempt, file)


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
