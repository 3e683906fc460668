"""Who runs a cell: attempts that claim it one after another, beat while they live, and stop when one follows them.

An attempt is a file of the cell, `attempts/<number>.json`: of any number of processes on any number of machines one
gets to make it. Its holder keeps the file locked, which tells everybody on the same machine
that it lives, and touches it again and again, which tells all others. The highest number has the cell: whoever finds
a higher one than its own writes nothing more. Writing and claiming take turns, so that nobody who found none is still
about to write when there is one.
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

BEAT_SECONDS = 10.0
LEASE_SECONDS = 90.0  # without a beat; file systems of clusters show a change up to a minute late
POLL_SECONDS = 0.2
CLOCK_SECONDS = 60.0  # between two looks at the clock of a file server
RELEASED = 0.0  # the last beat of who gave the cell back, seconds since the epoch


class Superseded(Exception):
    """A later attempt has the cell: this one must not write any more."""


@dataclass(frozen=True)
class Claim:
    """One attempt, as its file tells of it."""

    number: int
    job: str  # of the scheduler, or the process
    restart: int  # how often the scheduler had started that job before
    host: str
    boot: str  # identity of the running kernel; empty where it has none
    pid: int
    path: Path

    def is_here(self) -> bool:
        """Whether its process, if it lives, runs under this kernel."""
        return bool(self.boot) and self.boot == _boot()

    def beat(self) -> float:
        """When it was last touched, seconds since the epoch; `RELEASED` where it was given back."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return RELEASED

    def is_alive(self) -> bool:
        """Whether its process runs, as far as can be told from here at this moment."""
        if self.is_here() and (held := locks.is_held(self.path)) is not None:
            return held
        return self._silent() < LEASE_SECONDS

    def is_stale(self) -> bool:
        """Whether its process should have touched it long ago, though nothing else says that it is gone."""
        return self.beat() > RELEASED and self._silent() > LEASE_SECONDS

    def _silent(self) -> float:
        """Seconds since its last beat, both by the clock of whoever keeps its file."""
        experiment = self.path.absolute().parents[3]  # one file server keeps its cells: it is asked once for all
        return time.time() + _clock_ahead(experiment, int(time.monotonic() / CLOCK_SECONDS)) - self.beat()


class Lease:
    """A claim that this process holds."""

    def __init__(self, claim: Claim, file: IO[str]) -> None:
        self.claim, self._file = claim, file
        self._turn, self._waits = _turn_of(claim.path.parents[1]).open("a"), True
        self._next = path_of(claim.path.parents[1], claim.number + 1)
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._pulse.start()

    @property
    def number(self) -> int:
        """1 for the first attempt."""
        return self.claim.number

    @contextmanager
    def writing(self) -> Iterator[Callable[[], None]]:
        """Around everything that changes the cell's files: no later attempt claims it meanwhile.

        Raises `Superseded` where one has. Yields what raises it later: nobody waits for ever for a process that is
        frozen, so that what is done in several steps asks again before each that could harm a successor.
        """
        if not locks.take(self._turn.fileno(), LEASE_SECONDS if self._waits else 0.0):
            self._waits = False  # for a process that is frozen
        try:
            self.check()
            yield self.check
        finally:
            with suppress(OSError):
                fcntl.flock(self._turn, fcntl.LOCK_UN)

    def check(self) -> None:
        """Raise `Superseded` where a later attempt has claimed the cell."""
        try:
            self._next.open().close()  # opened, for a network file system may remember that it was not there
        except OSError:
            return
        raise Superseded(f"Attempt {self.number} of {self.claim.path.parents[1]} stops: a later one has the cell.")

    def release(self) -> None:
        """Give the cell back, so that the next attempt need not wait for silence."""
        self._ended.set()
        self._pulse.join()
        with suppress(OSError):
            os.utime(self.claim.path, (RELEASED, RELEASED))
        self._file.close()
        self._turn.close()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # a full or unreachable disk; the next write of the cell will say so
                os.utime(self.claim.path)


@lru_cache(maxsize=4096)
def _clock_ahead(directory: Path, period: int) -> float:
    """How far a file server's clock is ahead of this machine's, seconds; 0 where nothing may be written."""
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
    """Where the claim of an attempt lies."""
    return cell_dir / "attempts" / f"{number:04d}.json"


def _turn_of(cell_dir: Path) -> Path:
    """What is locked by who writes to the cell, and by who claims it, for that moment."""
    return cell_dir / "attempts" / ".turn"


def newest(cell_dir: Path) -> Claim | None:
    """The claim that has the cell, or had it last; null where it was never claimed."""
    for path in sorted((cell_dir / "attempts").glob("[0-9]*.json"), key=lambda p: int(p.stem), reverse=True):
        with suppress(OSError, ValueError, TypeError):
            return Claim(**json.loads(path.read_text()), path=path)
        return Claim(int(path.stem), "", 0, "", "", 0, path)  # unreadable: its number and its beat still count
    return None


def is_held(cell_dir: Path) -> bool:
    """Whether a process runs the cell, as far as can be told from here at this moment."""
    claim = newest(cell_dir)
    return claim is not None and claim.is_alive()


def next_number(cell_dir: Path) -> int:
    """The number that the next attempt will have, if none comes before it."""
    claim = newest(cell_dir)
    return claim.number + 1 if claim else 1


@contextmanager
def hold(
    cell_dir: Path,
    job: str = "",
    restart: int = 0,
    *,
    above: int = 0,
    is_gone: Callable[[Claim], bool] = lambda claim: False,
    give_up: Callable[[], bool] = locks.never,
) -> Iterator[Lease | None]:
    """Have the cell for the length of the block: when who has it now ends or falls silent. None where `give_up` says
    to stop waiting.

    An earlier run of the same job is not waited for: its scheduler has declared it dead. Nor is one that `is_gone`
    knows to have ended, whatever it still does. The attempt's number is higher than that of every claim there is, and
    than `above`.
    Raises `UserError` where the claim cannot be written.
    """
    lease, seen, since = None, None, time.monotonic()
    while lease is None and not give_up():
        before = newest(cell_dir)
        if (sign := before and (before.number, before.beat())) != seen:
            seen, since = sign, time.monotonic()  # on this process's own clock: those of other machines may differ
        free = before is None or _same_job(before, job, restart) or _has_ended(before, time.monotonic() - since)
        if free or (before is not None and is_gone(before)):
            lease = _claim(cell_dir, 1 + max(above, before.number if before else 0), job, restart)
        else:
            time.sleep(POLL_SECONDS)
    try:
        yield lease
    finally:
        if lease is not None:
            lease.release()


def _same_job(before: Claim, job: str, restart: int) -> bool:
    return bool(job) and before.job == job and before.restart < restart


def _has_ended(before: Claim, silent: float) -> bool:
    """Whether its process is gone: by its lock, else by what it said, or by `silent` seconds without a beat."""
    if before.is_here() and (held := locks.is_held(before.path)) is not None:
        return not held
    return before.beat() == RELEASED or silent > LEASE_SECONDS


def _claim(cell_dir: Path, number: int, job: str, restart: int) -> Lease | None:
    """Attempt `number`; None where another process was faster. Until it is whole, its beat alone says that it lives."""
    path = path_of(cell_dir, number)
    claim = Claim(number, job, restart, platform.node(), _boot(), os.getpid(), path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn_of(cell_dir).open("a") as turn:
            locks.take(turn.fileno(), LEASE_SECONDS)  # who has it that long is frozen, or on a machine that is gone
            try:
                file = path.open("x")
            except FileExistsError:
                return None
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error}): make room, or make the directory writable.") from error
    with suppress(OSError):  # where there are no locks, beats have to do
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        json.dump({key: value for key, value in asdict(claim).items() if key != "path"}, file)
        file.flush()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): make room.") from error
    return Lease(claim, file)


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
