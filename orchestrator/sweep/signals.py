"""Signals that ask a job of a multirun to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.jobs.worker import REQUEUED, leave_at_once
from orchestrator.schedulers.slurm.scheduler import Slurm, allocation

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # Slurm warns of a preemption or a time limit by SIGUSR2


@contextmanager
def interruptible() -> Iterator[Callable[[], set[int]]]:
    """Raise KeyboardInterrupt at these signals during the block, except in cells, which save first (`StopSignal`).

    Yields a function that returns the signals received so far, whoever handled them.
    """
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in STOPS}
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # Python writes every signal's number to it
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            yield lambda: set(pipe.read(4096) or ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def return_to_slurm(received: set[int]) -> None:
    """Have Slurm start this job again, and end the process; return where Slurm has not interrupted a job.

    Asks for nothing where Slurm is already ending the job.
    """
    job, slurm = allocation(), Slurm(Path())
    if (
        job is None
        or os.environ.get("SUBMITIT_EXECUTOR") != slurm.name
        or not received & {signal.SIGTERM, signal.SIGUSR2}
    ):
        return
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)  # also for scontrol, which inherits it
    if slurm.ending(job) is None and not slurm.requeue(job.id):
        print("Slurm did not put this job back into the queue.")
    leave_at_once(REQUEUED)
