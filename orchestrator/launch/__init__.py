"""Cells become jobs: submitted through submitit, recorded in the event log, resumed by launching again."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from orchestrator import data, monitoring
from orchestrator.common.environment import usable_cores
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, Device, LauncherKind, SidecarMode
from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.experiments.run_directory import record_launcher
from orchestrator.jobs.worker import is_finished
from orchestrator.launch import in_process, processes, queue
from orchestrator.launch.order import waves
from orchestrator.schedulers import slurm, submission
from orchestrator.storage import locks
from orchestrator.storage.event_log import OPEN, EventLog
from orchestrator.tracking import run
from orchestrator.training import distributed
from orchestrator.training.sidecar import planned_sidecar

FOLLOW_SECONDS = 2.0
ENGINES = {LauncherKind.local: processes.run, LauncherKind.debug: in_process.run}


def launch(
    experiment: Experiment, console: Console, only: Collection[str] | None = None, cancel: Collection[str] = ()
) -> list[Cell]:
    """Run every unfinished cell, as many at once as the launcher allows; return the cells that were launched.

    On a cluster they are only submitted: `follow` waits for them. A cell that a scheduler already has is left to it,
    unless it is among those whose jobs are to be cancelled first: `cancel`. `only`: the cells that may be launched;
    null: all.
    Raises `UserError` if another launcher holds the experiment. SIGINT or SIGTERM stops every cell that runs on this
    machine at its next step boundary, with a checkpoint.
    """
    with alone(experiment.directory):
        open_ones = queue.open_entries(EventLog(experiment.directory))
        cancelled = [open_ones[cell].job for cell in cancel if cell in open_ones]
        if cancelled:
            queue.cancel(experiment.directory, cancelled)
            console.print(f"Cancelled {', '.join(cancelled)}, which had these cells.", markup=False, soft_wrap=True)
        unfinished = [cell for cell in experiment.cells if not is_finished(cell.directory)]
        submitted = {c: job for c, job in with_a_scheduler(experiment, unfinished).items() if job not in cancelled}
        chosen = [cell for cell in unfinished if cell.id not in submitted and (only is None or cell.id in only)]
        if left := [f"{cell} (job {job})" for cell, job in submitted.items() if only is None or cell in only]:
            console.print(f"Slurm already has {', '.join(map(escape, left))}.")
        if chosen:
            record_launcher(experiment)
            kind = experiment.config.launcher.kind
            if kind == LauncherKind.slurm:
                queue.submit(experiment, chosen, console, beside=submitted)
            else:
                ENGINES[kind](experiment, chosen, console)
        elif submitted:
            queue.submit_finalize(experiment, submitted.values())
        return chosen


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the experiment for the length of the block. Raises `UserError` where another launcher does."""
    with locks.hold(monitoring.experiment_lock(directory), wait=False) as free:
        if not free:
            raise UserError(
                f"{directory} is being run by another process: wait for it, or follow it with "
                f"python -m orchestrator.status {directory}."
            )
        yield


def check(config: Config) -> None:
    """Raise `UserError` for what would end a cell of this configuration in its first second."""
    on_this_machine = config.launcher.kind != LauncherKind.slurm
    if on_this_machine and config.train.device == Device.cuda and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch sees no GPU here: use train.device=auto.")
    distributed.check(config, config.launcher.ranks)
    if config.launcher.kind == LauncherKind.debug and config.launcher.ranks > 1:
        raise UserError(
            f"launcher.ranks={config.launcher.ranks} needs a process for each rank, and launcher=debug has one: "
            "use launcher=local."
        )
    if config.launcher.kind == LauncherKind.local:
        slots(config)
    if config.sidecar.mode != SidecarMode.off:
        planned_sidecar(config)


def refuse_early(experiment: Experiment) -> None:
    """Raise `UserError` for what would end its cells in their first second."""
    for config in experiment.arms.values():
        check(config)
        data.check(config.data, config.model.vocab_size, config.train.seq_len)
    run.check(experiment.config)


def check_jobs(experiment: Experiment) -> None:
    """Raise `UserError` where the cluster would not take the experiment's jobs."""
    if experiment.config.launcher.kind == LauncherKind.slurm:
        begun = waves([cell for cell in experiment.cells if not is_finished(cell.directory)])
        together = max(map(len, begun), default=1) if experiment.config.launcher.slurm.array else 1
        submission.refuse_impossible(experiment.config, experiment.directory / "jobs", together)


def prepare_data(experiment: Experiment, console: Console) -> None:
    """Have the corpora of all arms ready, before the cells that share them begin. Raises `UserError`."""
    with console.status("Preparing the data"):
        for config in experiment.arms.values():
            data.prepare(config.data, config.model.vocab_size, config.train.seq_len)


def slots(config: Config) -> list[str | None]:
    """One slot for each cell that may run at once: its GPUs as CUDA_VISIBLE_DEVICES names them, or None on the CPU.

    A cell of several ranks has a GPU for each. Raises `UserError` where there are not as many.
    """
    each = config.launcher.ranks
    if config.train.device == Device.cpu or not torch.cuda.is_available():
        return [None] * (config.launcher.parallel or max(1, usable_cores() // (config.train.threads * each)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    names = names[: torch.cuda.device_count()]
    gpus = [",".join(names[i : i + each]) for i in range(0, len(names) - each + 1, each)]
    if not gpus:
        raise UserError(
            f"launcher.ranks={each} needs as many GPUs for a cell, and torch sees {len(names)} here: "
            "lower launcher.ranks, or set train.device=cpu."
        )
    return [gpus[i % len(gpus)] for i in range(config.launcher.parallel or len(gpus))]


def still_with_a_scheduler(experiment: Experiment) -> list[str]:
    """The unfinished cells that wait or run as a scheduler's jobs at this moment, or that such a job will see to."""
    unfinished = [cell for cell in experiment.cells if not is_finished(cell.directory)]
    last = EventLog(experiment.directory).comparison()
    if last is not None and last.state in OPEN and not _has_ended(experiment, last.job):
        return [cell.id for cell in unfinished]
    return list(with_a_scheduler(experiment, unfinished))


def follow(experiment: Experiment, console: Console) -> bool:
    """Where `launcher.wait` is set, show the jobs until the last, which compares, has ended; whether it has.

    Ctrl-C stops watching, and no job, which is said.
    """
    launcher = experiment.config.launcher
    if launcher.kind != LauncherKind.slurm or not launcher.wait:
        return False
    events, watched = EventLog(experiment.directory), None
    try:
        while True:
            last = events.comparison()
            if watched is None or (last and last.job != watched):  # what compares may have tried cells again instead
                monitoring.watch(experiment.directory, console)
                watched, last = last.job if last else "", events.comparison()
            ended = last is None or last.state not in OPEN or _has_ended(experiment, last.job)
            if ended and events.comparison() == last:  # else it has submitted another as it ended
                return True
            if not ended:
                time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        console.print("Stopped watching; the jobs go on.")
        return False


def _has_ended(experiment: Experiment, job: str) -> bool:
    """Whether that job neither waits nor runs, as far as Slurm can be asked."""
    known = slurm.jobs([job], experiment.directory, EventLog(experiment.directory).owner())
    return known is not None and (job not in known or known[job].has_ended)


def with_a_scheduler(experiment: Experiment, cells: list[Cell]) -> dict[str, str]:
    """Cell → job, of those that wait or run as a scheduler's jobs at this moment.

    Raises `UserError` where there may be such jobs and the scheduler cannot be asked: nobody should submit them twice.
    """
    events = EventLog(experiment.directory)
    last = events.last()
    theirs = {cell.id: last[cell.id].job for cell in cells if cell.id in last and last[cell.id].scheduler}
    known = slurm.jobs(theirs.values(), experiment.directory, events.owner())
    if known is None:
        raise UserError(
            f"{experiment.directory} has jobs with Slurm, which does not answer here (squeue): "
            "try again later, or from a login node."
        )
    return {cell: job for cell, job in theirs.items() if job in known and not known[job].has_ended}
