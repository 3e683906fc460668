"""Claims: real processes that hold them, die with them, freeze with them, and find them taken."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import IO

import pytest

from orchestrator.common.errors import UserError
from orchestrator.storage import lease, locks
from tests.naming import naming
from tests.waiting import PATIENCE, wait_for

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def new_clock() -> None:
    """Forget the clock that a test has set before the next test."""
    lease._clock_ahead.cache_clear()


def _hold(cell: Path, job: str, restart: int, told: Connection, seconds: float) -> None:
    with lease.hold(cell, job, restart) as held:
        assert held
        told.send(held.number)
        time.sleep(seconds)


@contextmanager
def holder(cell: Path, job: str = "", restart: int = 0, seconds: float = PATIENCE) -> Iterator[ForkProcess]:
    """A process that holds the cell, until it is killed or the block ends."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=_hold, args=(cell, job, restart, there, seconds))
    process.start()
    assert here.poll(PATIENCE)
    here.recv()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def elsewhere(cell: Path, number: int, age: float) -> Path:
    """The claim of a process on another machine, last touched so many seconds ago."""
    path = lease.path_of(cell, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"number": number, "job": "3", "restart": 0, "host": "far", "boot": "another kernel", "pid": 1}
    path.write_text(json.dumps(told))
    os.utime(path, (time.time() - age,) * 2)
    return path


def quickly(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.6) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", seconds)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)


def test_of_many_processes_each_has_the_cell_once_and_alone(tmp_path: Path) -> None:
    def run() -> None:
        with lease.hold(tmp_path) as held:
            assert held
            with (tmp_path / "log").open("a") as log:
                log.write(f"+{held.number}\n")
            time.sleep(0.02)
            held.check()
            with (tmp_path / "log").open("a") as log:
                log.write(f"-{held.number}\n")

    processes = [FORK.Process(target=run) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = (tmp_path / "log").read_text().split()
    assert lines == [sign + str(number) for number in range(1, 9) for sign in "+-"]


def test_a_killed_holder_is_seen_to_be_gone_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        assert lease.is_held(tmp_path)
        process.kill()
        process.join()
        assert not lease.is_held(tmp_path)
        with lease.hold(tmp_path) as held:
            assert held
            assert held.number == 2


def test_waiting_can_be_given_up(tmp_path: Path) -> None:
    asked: list[int] = []
    with holder(tmp_path), lease.hold(tmp_path, give_up=lambda: len(asked) > 1 or asked.append(1)) as held:
        assert held is None
    assert lease.newest(tmp_path).number == 1  # type: ignore[union-attr]


def test_the_same_job_started_again_waits_for_nobody_and_fences_what_it_was(tmp_path: Path) -> None:
    with lease.hold(tmp_path, "7_1", 0) as before:
        assert before
        before.check()
        with lease.hold(tmp_path, "7_1", 1) as held:
            assert held
            assert held.number == 2
            held.check()
            with pytest.raises(lease.Superseded, match="Attempt 1"):
                before.check()


def test_nobody_claims_a_cell_while_something_is_written(tmp_path: Path) -> None:
    """Else who found no successor just before it wrote would write when there is one."""
    told, say = FORK.Pipe(duplex=False)

    def follow() -> None:
        say.send("began")
        with lease.hold(tmp_path, "7_1", 1) as held:
            assert held
            say.send("has it")

    with lease.hold(tmp_path, "7_1", 0) as before:
        assert before
        follower = FORK.Process(target=follow)
        with before.writing():
            follower.start()
            assert told.recv() == "began"
            assert not told.poll(0.5)
            before.check()
        assert told.recv() == "has it"
        with pytest.raises(lease.Superseded), before.writing():
            pytest.fail("it must not write any more")
        follower.join()


def test_who_is_frozen_while_it_writes_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(monkeypatch)

    def freeze() -> None:
        with lease.hold(tmp_path, "7_1", 0) as held:
            assert held
            with held.writing():
                os.kill(os.getpid(), signal.SIGSTOP)

    frozen = FORK.Process(target=freeze)
    frozen.start()
    assert frozen.pid
    os.waitpid(frozen.pid, os.WUNTRACED)
    try:
        with lease.hold(tmp_path, "7_1", 1) as held:
            assert held
            with held.writing():
                held.check()
    finally:
        os.kill(frozen.pid, signal.SIGKILL)


def test_an_attempt_comes_after_all_that_are_known_of_and_need_not_wait_for_who_is_known_to_be_gone(
    tmp_path: Path,
) -> None:
    with lease.hold(tmp_path, above=4) as first:
        assert first
        assert first.number == 5
        with lease.hold(tmp_path, above=2, is_gone=lambda claim: claim.number == 5) as second:
            assert second
            assert second.number == 6
            with pytest.raises(lease.Superseded):
                first.check()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_a_file_system_that_stumbles_does_not_give_a_living_cell_away(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(tmp_path):
        opened = Path.open

        def stumble(path: Path, *how: str, **text: str) -> IO[str]:
            if path.suffix == ".json" and not how:
                raise OSError(code, "stumbled")
            return opened(path, *how, **text)  # type: ignore[call-overload, no-any-return]

        claim = lease.newest(tmp_path)
        monkeypatch.setattr(Path, "open", stumble)
        assert locks.is_held(tmp_path / "attempts/0001.json") is None
        assert claim
        assert claim.is_alive()
        assert not lease._has_ended(claim, 0.0)


def test_a_process_on_another_machine_is_waited_for_as_long_as_it_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(monkeypatch)
    path = elsewhere(tmp_path, 1, age=0)
    beats: list[float] = []

    def beat() -> bool:
        if len(beats) < 20:
            os.utime(path, (1e9 + len(beats),) * 2)  # by a clock that is years behind
            beats.append(time.monotonic())
        return False

    with lease.hold(tmp_path, give_up=beat) as held:
        assert held
        assert held.number == 2
    assert len(beats) == 20
    assert time.monotonic() - beats[-1] > lease.LEASE_SECONDS


@pytest.mark.parametrize("ahead", [-3e7, 0, 3e7])
def test_silence_is_measured_on_the_waiting_process_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """Whatever the wall clocks of the two machines say, and if this one jumps."""
    quickly(monkeypatch)
    elsewhere(tmp_path, 1, age=-ahead)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + (ahead if int(time.monotonic() * 50) % 2 else -ahead))
    begun = time.monotonic()
    with lease.hold(tmp_path) as held:
        assert held
    assert time.monotonic() - begun > lease.LEASE_SECONDS


@pytest.mark.parametrize("ahead", [-3e5, 3e5])
def test_a_clock_that_differs_from_the_file_servers_makes_no_zombie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    elsewhere(tmp_path, 1, age=10)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + ahead)
    claim = lease.newest(tmp_path)
    assert claim
    assert claim.is_alive()
    assert not claim.is_stale()
    os.utime(claim.path, (wall() - 1000,) * 2)
    assert not claim.is_alive()
    assert claim.is_stale()
    assert [path.name for path in tmp_path.iterdir()] == ["attempts"]


def test_one_look_at_a_file_servers_clock_does_for_all_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[Path] = []
    touch = Path.touch

    def noted(path: Path) -> None:
        probed.append(path.parent)
        touch(path)

    for arm in ("a", "b"):
        for seed in range(5):
            elsewhere(tmp_path / f"x/{arm}/seed={seed}", 1, age=10)
    monkeypatch.setattr(Path, "touch", noted)
    monkeypatch.setattr(lease, "CLOCK_SECONDS", 1e9)
    assert all(lease.is_held(path) for path in tmp_path.glob("x/*/*"))
    assert probed == [tmp_path / "x"]
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["a", "b"]
    monkeypatch.chdir(tmp_path / "x/a/seed=0")
    assert lease.is_held(Path())


def test_what_was_given_back_elsewhere_is_not_waited_for(tmp_path: Path) -> None:
    os.utime(elsewhere(tmp_path, 1, age=0), (lease.RELEASED, lease.RELEASED))
    assert not lease.is_held(tmp_path)
    with lease.hold(tmp_path) as held:
        assert held


def test_release_is_told_to_other_machines(tmp_path: Path) -> None:
    with lease.hold(tmp_path) as held:
        assert held
        assert held.attempt.heartbeat() > lease.RELEASED
    assert held.attempt.heartbeat() == lease.RELEASED


def test_a_holder_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    with lease.hold(tmp_path) as held:
        assert held
        os.utime(held.attempt.path, (1e9, 1e9))
        wait_for(lambda: held.attempt.heartbeat() != 1e9)
        assert not held.attempt.is_stale()


def test_a_frozen_holder_is_alive_and_stale(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        assert process.pid
        os.kill(process.pid, signal.SIGSTOP)
        os.utime(lease.path_of(tmp_path, 1), (time.time() - 2 * lease.LEASE_SECONDS,) * 2)
        claim = lease.newest(tmp_path)
        assert claim
        assert claim.is_alive()
        assert claim.is_stale()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"number": 1}', "\0\0\0"])
def test_an_unreadable_claim_counts_by_its_number_and_its_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """Its maker may have just died on it, or just be writing it."""
    quickly(monkeypatch)
    path = elsewhere(tmp_path, 4, age=0)
    path.write_text(content)
    assert lease.is_held(tmp_path)
    with lease.hold(tmp_path) as held:
        assert held
        assert held.number == 5


def test_without_file_locks_beats_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some file systems of clusters, where flock is an error."""

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    quickly(monkeypatch)
    assert locks.is_held(tmp_path) is not True
    with lease.hold(tmp_path) as held:
        assert held
        assert lease.is_held(tmp_path)
        begun = time.monotonic()
        with lease.hold(tmp_path) as other:
            assert other
            with pytest.raises(lease.Superseded):
                held.check()
        assert time.monotonic() - begun > lease.LEASE_SECONDS


def test_a_directory_that_takes_no_claim_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("in the way")
    with (
        pytest.raises(UserError, match=naming("attempts/0001.json", "room", "writable")),
        lease.hold(tmp_path),
    ):
        pass
