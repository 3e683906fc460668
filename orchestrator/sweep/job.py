"""One job of a multirun: its record, its console, its share of the machine, and the signals that interrupt it."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import submitit
from hydra.core.utils import env_override
from rich.console import Console

from orchestrator.common import command, errors
from orchestrator.common.signals import stops
from orchestrator.config.keys import key_of
from orchestrator.config.schema import Config
from orchestrator.jobs.worker import REQUEUED, leave_at_once
from orchestrator.schedulers import SCHEDULERS, chosen
from orchestrator.schedulers.scheduler import Scheduler
from orchestrator.storage import locks
from orchestrator.sweep.multirun import Multirun
from orchestrator.sweep.prefixed_stream import PrefixedStream
from orchestrator.sweep.records import JobRecord, read_records

POLL_SECONDS = 0.2
GPUS = "CUDA_VISIBLE_DEVICES"


class Job:
    """The job that this process runs. `swept`: those of its overrides that vary from job to job."""

    def __init__(self, multirun: Multirun, number: int, overrides: Sequence[str]) -> None:
        self.multirun, self.launcher, keys = multirun, multirun.launcher, multirun.swept_keys
        self.swept = [o for o in overrides if not keys or key_of(o) in keys]
        self.record = JobRecord(number, " ".join(self.swept))

    def run(self, experiment: Callable[[], int]) -> None:
        """Call `experiment` and record its exit code; give the job back to its queue where that interrupts it.

        Calls nothing once a job on this machine has been stopped, since that stops all of them.
        """
        with interruptible() as received:
            if self.launcher.log_files:
                self.record.log = str(submitit.JobEnvironment().paths.stdout)
            self.record.write(self.multirun.directory)
            others = [] if self.launcher.queue else read_records(self.multirun.directory)
            stopped = any(other.exit_code == errors.INTERRUPTED for other in others)
            self.record.exit_code = errors.INTERRUPTED if stopped else experiment()
            if self.record.exit_code == errors.INTERRUPTED:
                return_to_queue(received())
            self.record.write(self.multirun.directory)

    def record_directory(self, experiment_dir: Path) -> None:
        """Record the experiment's directory."""
        self.record.directory = str(experiment_dir)
        self.record.write(self.multirun.directory)

    def console(self) -> Console:
        """A console that prints the job's label: before each line where jobs share a terminal, else once, at first."""
        console = command.console()
        if self.launcher.side_by_side and not self.launcher.log_files:
            stream = PrefixedStream(sys.stdout, self.record.label, self.multirun.directory / "terminal.lock")
            return Console(file=stream, width=console.width, force_terminal=False)  # type: ignore[arg-type]
        console.print(f"\n── {self.record.label} ──", markup=False, highlight=False, soft_wrap=True)
        return console

    def complain(self, sentence: str) -> None:
        """Print an error to stderr, and record it."""
        self.record.messages.append(f"{self.record.label}: {sentence}")
        errors.complain(self.record.messages[-1])

    @contextmanager
    def share_of_machine(self, config: Config) -> Iterator[None]:
        """Hold a share of this machine's cores or GPUs for the block; wait while other jobs hold them all.

        There are at most as many shares as slots for cells (`Scheduler.slots`). Sets `config.launcher.parallel` to the
        number of cells that fit, and hides the GPUs of the other shares from this process.
        """
        if not self.launcher.side_by_side or chosen(config).queues:
            yield
            return
        if os.environ.get(GPUS) == "":  # submitit hides the GPUs from a job that asks for none
            del os.environ[GPUS]
            os.environ |= {} if self.multirun.visible_gpus is None else {GPUS: self.multirun.visible_gpus}
        asked, config.launcher.parallel = config.launcher.parallel, None
        slots = Scheduler.slots(config)
        shares = max(1, min(self.multirun.jobs, len(slots) // (asked or 1)))
        for share in itertools.cycle(range(shares)):
            with locks.hold(self.multirun.directory / f"share-{share}.lock", wait=False) as free:
                if free:
                    mine = slots[share::shares]
                    config.launcher.parallel = asked or len(mine)
                    with env_override({GPUS: ",".join(filter(None, mine))} if any(mine) else {}):
                        yield
                    return
            time.sleep(POLL_SECONDS)


@contextmanager
def interruptible() -> Iterator[Callable[[], set[int]]]:
    """Raise KeyboardInterrupt at these signals during the block, except in cells, which save first (`StopSignal`).

    Yields a function that returns the signals received so far, whoever handled them.
    """
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in stops()}
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


def return_to_queue(received: set[int]) -> None:
    """Requeue this job and end the process; return where no signal of its queue's has interrupted it.

    Requeues nothing where the queue is already ending the job.
    """
    kind = SCHEDULERS.get(os.environ.get("SUBMITIT_EXECUTOR", ""))  # submitit has the same names
    job = kind.allocation() if kind else None
    if kind is None or job is None or not received & {signal.SIGTERM, signal.SIGUSR2}:
        return
    scheduler = kind(Path())
    for number in stops():
        signal.signal(number, signal.SIG_IGN)  # also for scontrol, which inherits it
    if scheduler.ending(job) is None and not scheduler.requeue(job.id):
        print(f"{scheduler.title} did not requeue this job.")
    leave_at_once(REQUEUED)
