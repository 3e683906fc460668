"""One job of a multirun: its record, its console, its share of the machine."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hydra.core.utils import env_override
from rich.console import Console

from orchestrator.common import command, errors
from orchestrator.config.schema import Config
from orchestrator.experiments.experiment import Experiment
from orchestrator.schedulers import chosen
from orchestrator.schedulers.slots import machine_slots
from orchestrator.storage import locks
from orchestrator.sweep.multirun import Multirun
from orchestrator.sweep.prefixed_stream import PrefixedStream
from orchestrator.sweep.records import JobRecord, read_records
from orchestrator.sweep.signals import interruptible, return_to_slurm

POLL_SECONDS = 0.2
GPUS = "CUDA_VISIBLE_DEVICES"


class Job:
    """The job that this process runs. `swept` are those of its overrides that vary from job to job."""

    def __init__(self, multirun: Multirun, number: int, overrides: Sequence[str]) -> None:
        self.multirun, self.launcher, keys = multirun, multirun.launcher, multirun.swept_keys
        self.swept = [o for o in overrides if not keys or o.lstrip("+").partition("=")[0] in keys]
        self.record = JobRecord(number, " ".join(self.swept))

    def run(self, experiment: Callable[[], int]) -> None:
        """Call `experiment` and record the exit code that it returns; give a job that Slurm interrupts back to it.

        Calls nothing once a job on this machine has been stopped: that means all of them.
        """
        with interruptible() as received:
            if self.launcher.log_files:
                import submitit

                self.record.log = str(submitit.JobEnvironment().paths.stdout)
            self.record.write(self.multirun.directory)
            others = [] if self.launcher.in_slurm else read_records(self.multirun.directory)
            stopped = any(other.exit_code == errors.INTERRUPTED for other in others)
            self.record.exit_code = errors.INTERRUPTED if stopped else experiment()
            if self.record.exit_code == errors.INTERRUPTED:
                return_to_slurm(received())
            self.record.write(self.multirun.directory)

    def begin(self, experiment: Experiment) -> None:
        """Record the experiment's directory."""
        self.record.directory = str(experiment.directory)
        self.record.write(self.multirun.directory)

    def console(self) -> Console:
        """A console whose output says which job it is from: in each line where jobs share a terminal, else at first."""
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

        There are as many shares as jobs, but none without a slot for a cell (`machine_slots`). Sets
        `config.launcher.parallel` to the number of cells that fit, and shows this process its own GPUs only.
        """
        if not self.launcher.side_by_side or chosen(config).queues:
            yield
            return
        if os.environ.get(GPUS) == "":  # submitit hides the GPUs from a job that asks for none
            del os.environ[GPUS]
            os.environ |= {} if self.multirun.visible_gpus is None else {GPUS: self.multirun.visible_gpus}
        asked, config.launcher.parallel = config.launcher.parallel, None
        slots = machine_slots(config)
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
