"""What a job of a multirun does when the terminal, or the scheduler that runs it, tells it to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@contextmanager
def signals_restored() -> Iterator[None]:
    """Undo on leaving what a multirun changes in how this process hears signals."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # a Ctrl-C that waited is heard as during the multirun
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Listener:
    """In a job's process: what means "stop" interrupts it, but for its cells, which save first (`StopSignal`)."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}  # the handlers of whoever runs the job

    def __enter__(self) -> Listener:
        self._previous = {number: signal.signal(number, _interrupt) for number in STOPS}
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)  # hears all, whoever handles it
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def hand_back(self) -> None:
        """Give a stopped job back to the scheduler that stopped it; returns where there is none.

        At its time limit, or preempted with a warning, submitit puts the job into the queue again while its budget
        of timeouts lasts. Where Slurm is already ending the job, which it may start again, the job leaves no result.
        """
        if not self._previous:
            return
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)  # also for `scontrol`, which inherits it
        try:
            received = {*os.read(self._read, 4096)}
        except BlockingIOError:
            received = set()
        slurm, requeue = os.environ.get("SUBMITIT_EXECUTOR") == "slurm", self._previous[signal.SIGUSR2]
        if signal.SIGTERM in received and slurm:
            _vanish()
        if signal.SIGUSR2 in received and callable(requeue):
            try:
                requeue(signal.SIGUSR2, None)
            except (subprocess.SubprocessError, OSError) as error:
                print(f"This job could not be put into the queue again ({error}).", file=sys.stderr)
                if slurm:
                    _vanish()
            except RuntimeError as error:  # submitit's word that it will not
                print(error, file=sys.stderr)


def _vanish() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal.SIGTERM)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt
