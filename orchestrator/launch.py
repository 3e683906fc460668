"""Cells become jobs: submitted through submitit, watched, recorded in the manifest, resumed by running again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import submitit
import torch
from rich.console import Console
from rich.markup import escape

from models.transformer import Decoder
from orchestrator import locks, schedule, status
from orchestrator.callbacks import build_sidecar
from orchestrator.environment import usable_cores
from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Experiment, decoder_spec
from orchestrator.job import is_finished, run_job
from orchestrator.manifest import Manifest
from orchestrator.schema import Config, Device, LauncherKind, SidecarMode
from orchestrator.train import StopSignal


def launch(experiment: Experiment, console: Console) -> list[Cell]:
    """Run every unfinished cell, as many at once as the launcher allows; return the cells that were run.

    Raises `UserError` if another launcher holds the experiment. SIGINT or SIGTERM stops every cell at its next
    step boundary, with a checkpoint.
    """
    with locks.hold(status.experiment_lock(experiment.directory), wait=False) as free:
        if not free:
            raise UserError(
                f"{experiment.directory} is being run by another process: wait for it, or follow it with "
                f"python -m orchestrator.status {experiment.directory}."
            )
        unfinished = [cell for cell in experiment.cells if not is_finished(cell.directory)]
        if unfinished:
            _ENGINES[experiment.config.launcher.kind](experiment, unfinished, console)
        return unfinished


def check(config: Config) -> None:
    """Raise `UserError` for what would end a cell of this configuration in its first second."""
    if config.train.device == Device.cuda and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch sees no GPU here: use train.device=auto.")
    if config.sidecar.mode != SidecarMode.off:
        with torch.device("meta"):
            model = Decoder(decoder_spec(config))
        learning = replace(
            config.sidecar, mode=SidecarMode.fixed if config.sidecar.mode == SidecarMode.fixed else SidecarMode.learn
        )
        build_sidecar(replace(config, sidecar=learning), model, lambda interval: torch.zeros(()))


def slots(config: Config) -> list[str | None]:
    """One slot for each cell that may run at once: a GPU as CUDA_VISIBLE_DEVICES names it, or None on the CPU."""
    if config.train.device == Device.cpu or not torch.cuda.is_available():
        return [None] * (config.launcher.parallel or max(1, usable_cores() // config.train.threads))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    gpus = names[: torch.cuda.device_count()]
    return [gpus[i % len(gpus)] for i in range(config.launcher.parallel or len(gpus))]


def _run_here(experiment: Experiment, cells: list[Cell], console: Console) -> None:
    """One cell after another in this process."""
    waiting = list(cells)
    while waiting:
        cell = waiting.pop(_first_ready(waiting, waiting) or 0)
        executor = submitit.DebugExecutor(folder=experiment.directory / "jobs")
        console.print(f"{escape(cell.id)} starts in this process")
        if executor.submit(run_job, str(cell.directory)).result() == "stopped":
            break


def _run_processes(experiment: Experiment, cells: list[Cell], console: Console) -> None:
    """Each cell a process of this machine, with as many of them at once as there are slots."""
    manifest = Manifest(experiment.directory)
    free, waiting = slots(experiment.config), list(cells)
    running: list[tuple[Cell, Any, str | None]] = []
    with StopSignal() as stop, status.Screen(experiment.directory, console) as screen:
        asked_to_stop = False
        while running or (waiting and not stop.received):
            while waiting and free and not stop.received:
                ready = _first_ready(waiting, [*waiting, *(cell for cell, _, _ in running)])
                if ready is None:
                    break
                cell, gpu = waiting.pop(ready), free.pop(0)
                job = _submit(experiment, cell, gpu)
                manifest.append(cell.id, "submitted", attempt=manifest.attempts(cell.id) + 1, job=job.job_id)
                running.append((cell, job, gpu))
            if stop.received and not asked_to_stop:
                asked_to_stop = True
                for _, job, _ in running:
                    os.kill(int(job.job_id), signal.SIGTERM)  # a local job's id is its process; it tells the cell
            for cell, job, gpu in [entry for entry in running if entry[1].done()]:
                running.remove((cell, job, gpu))
                free.append(gpu)
                _record_silent_end(cell, manifest, job, asked_to_stop)
            screen.refresh()
            time.sleep(0.2)


def _first_ready(waiting: list[Cell], unfinished: list[Cell]) -> int | None:
    """The first of `waiting` that plays back no unfinished cell's decisions."""
    unfinished_paths = {cell.directory for cell in unfinished}
    for index, cell in enumerate(waiting):
        if schedule.source(cell.config, cell.directory.parents[1]) not in unfinished_paths:
            return index
    return None


def _submit(experiment: Experiment, cell: Cell, gpu: str | None) -> Any:
    threads = str(cell.config.train.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, TOKENIZERS_PARALLELISM="false")
    executor = submitit.LocalExecutor(folder=experiment.directory / "jobs")
    executor.update_parameters(timeout_min=60 * experiment.config.launcher.timeout_hours)
    # submitit's controller kills its task a second after Ctrl-C. Ignored by inheritance, Ctrl-C reaches only
    # this process and the cell, which saves first. So does Slurm's warning, sent to every process of its job.
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGUSR2)}
    try:
        return executor.submit(run_job, str(cell.directory), gpu)
    except OSError as error:
        raise UserError(f"{executor.folder} cannot take a job ({error}): make room or make it writable.") from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _record_silent_end(cell: Cell, manifest: Manifest, job: Any, asked_to_stop: bool) -> None:
    """A process that ended without leaving an outcome was stopped as it started, killed, or short of memory."""
    entry = manifest.last()[cell.id]
    if entry.state not in ("submitted", "running") or locks.is_held(status.cell_lock(cell.directory)):
        return  # it said how it ended, or another process has the cell
    if asked_to_stop:
        manifest.append(cell.id, "stopped", attempt=entry.attempt, job=entry.job)
    else:
        reason = (
            f"its process ended without a word (killed, or out of memory; log: {job.paths.stderr}): "
            "the same command resumes it"
        )
        manifest.append(cell.id, "failed", attempt=entry.attempt, job=entry.job, reason=reason)


_ENGINES: dict[LauncherKind, Callable[[Experiment, list[Cell], Console], None]] = {
    LauncherKind.local: _run_processes,
    LauncherKind.debug: _run_here,
}
