"""Cells become jobs: submitted through submitit, watched, recorded in the manifest, resumed by running again.

`python -m orchestrator.launch CELL_DIR` runs or resumes one cell in this process, as a job would.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit
import torch
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from models.transformer import Decoder
from orchestrator import checkpoint, status
from orchestrator.callbacks import build_sidecar
from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Experiment, decoder_spec
from orchestrator.manifest import Manifest
from orchestrator.schema import Config, Device, LauncherKind, SidecarMode
from orchestrator.train import StopSignal, train_cell


def run_job(cell_dir: str) -> str:
    """The body of a job: run or resume one cell and leave its outcome in the manifest; return the state.

    Waits for a process that may still be running the cell (one that outlived its launcher), then finds the
    cell finished or goes on from where that process left it. Never raises: a failed cell is a recorded state.
    """
    path = Path(cell_dir)
    cell, manifest = f"{path.parent.name}/{path.name}", Manifest(path.parent.parent)
    with status.held(status.cell_lock(path), wait=True):
        if is_finished(path):
            return "done"
        attempt = manifest.attempts(cell) + 1
        job = str(os.getpid())

        def note(state: str, reason: str = "") -> str:
            manifest.append(cell, state, attempt=attempt, job=job, reason=reason)
            return state

        def started(step: int, warnings: list[str]) -> None:
            note("running", " ".join([*warnings, f"resumed at step {step}" if step else ""]).strip())

        try:
            finished = train_cell(path, attempt, started)
        except UserError as error:
            return note("failed", str(error))
        except Exception as error:
            traceback.print_exc()
            return note("failed", f"{type(error).__name__}: {error}")
        return note("done") if finished else note("stopped")


def is_finished(cell_dir: Path) -> bool:
    """Whether the manifest calls the cell done and its last checkpoint is there."""
    entry = Manifest(cell_dir.parent.parent).last().get(f"{cell_dir.parent.name}/{cell_dir.name}")
    if entry is None or entry.state != "done":
        return False
    steps = status.status_of(cell_dir, entry).steps
    return checkpoint.path_of(cell_dir / "checkpoints", steps).is_dir()


def launch(experiment: Experiment, console: Console) -> list[Cell]:
    """Run every unfinished cell, as many at once as the launcher allows; return the cells that were run.

    Raises `UserError` if another launcher holds the experiment. SIGINT or SIGTERM stops every cell at its next
    step boundary, with a checkpoint.
    """
    with status.held(experiment.directory / ".lock", wait=False) as free:
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
            build_sidecar(config, dict(Decoder(decoder_spec(config)).named_parameters()))


def slots(config: Config) -> list[int]:
    """One slot for each cell that may run at once: GPU indices, or CPU cores over the threads a cell uses."""
    on_gpu = config.train.device != Device.cpu and torch.cuda.is_available()
    available = torch.cuda.device_count() if on_gpu else max(1, _cores() // config.train.threads)
    wanted = config.launcher.parallel or available
    return [i % available for i in range(wanted)] if on_gpu else list(range(wanted))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_here(experiment: Experiment, cells: list[Cell], console: Console) -> None:
    """One cell after another in this process."""
    for cell in cells:
        executor = submitit.DebugExecutor(folder=experiment.directory / "jobs")
        console.print(f"{escape(cell.id)} starts in this process")
        if executor.submit(run_job, str(cell.directory)).result() == "stopped":
            break


def _run_processes(experiment: Experiment, cells: list[Cell], console: Console) -> None:
    """Each cell a process of this machine, with as many of them at once as there are slots."""
    config, manifest = experiment.config, Manifest(experiment.directory)
    on_gpu = config.train.device != Device.cpu and torch.cuda.is_available()
    free, waiting = slots(config), list(cells)
    running: dict[str, tuple[Cell, Any, int]] = {}
    watch = _Watcher(experiment, console)
    with StopSignal() as stop, watch:
        asked_to_stop = False
        while running or (waiting and not stop.received):
            while waiting and free and not stop.received:
                cell, slot = waiting.pop(0), free.pop(0)
                job = _submit(experiment, cell, slot if on_gpu else None)
                manifest.append(cell.id, "submitted", attempt=manifest.attempts(cell.id) + 1, job=job.job_id)
                running[cell.id] = (cell, job, slot)
            if stop.received and not asked_to_stop:
                asked_to_stop = True
                for _, job, _ in running.values():
                    os.kill(int(job.job_id), signal.SIGTERM)  # a local job's id is its process; it tells the cell
            for cell_id, (cell, job, slot) in list(running.items()):
                if job.done():
                    del running[cell_id]
                    free.append(slot)
                    _record_silent_death(cell, manifest, job)
            watch.refresh()
            time.sleep(0.2)


def _submit(experiment: Experiment, cell: Cell, gpu: int | None) -> Any:
    threads = str(cell.config.train.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, TOKENIZERS_PARALLELISM="false")
    executor = submitit.LocalExecutor(folder=experiment.directory / "jobs")
    executor.update_parameters(timeout_min=60 * experiment.config.launcher.timeout_hours)
    if gpu is not None:
        executor.update_parameters(gpus_per_node=1, visible_gpus=(gpu,))
    # submitit's controller kills its task a second after Ctrl-C. Ignored by inheritance, Ctrl-C reaches only
    # this process and the cell, which saves first.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return executor.submit(run_job, str(cell.directory))
    finally:
        signal.signal(signal.SIGINT, previous)


def _record_silent_death(cell: Cell, manifest: Manifest, job: Any) -> None:
    """A process that ended without leaving an outcome was killed, or ran out of memory."""
    entry = manifest.last()[cell.id]
    if entry.state in ("submitted", "running"):
        reason = f"its process ended without a word (killed, or out of memory); log: {job.paths.stderr}"
        manifest.append(cell.id, "failed", attempt=entry.attempt, job=entry.job, reason=reason)


class _Watcher:
    """Shows the cells while they run: a live table on a terminal, a line at every tenth of a cell in a log."""

    def __init__(self, experiment: Experiment, console: Console) -> None:
        self.directory, self.console = experiment.directory, console
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.shown: dict[str, tuple[str, int]] = {}
        self.next_refresh = 0.0

    def __enter__(self) -> _Watcher:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.refresh(force=True)
        if self.live:
            self.live.__exit__(*error)

    def refresh(self, force: bool = False) -> None:
        if not force and time.monotonic() < self.next_refresh:
            return
        self.next_refresh = time.monotonic() + 1.0
        statuses = status.read_status(self.directory)
        if self.live:
            self.live.update(status.table(statuses), refresh=True)
            return
        for cell in statuses:
            mark = (cell.state, 10 * cell.step // cell.steps)
            if cell.state not in ("next", "submitted") and self.shown.get(cell.cell) != mark:
                self.shown[cell.cell] = mark
                self.console.print(status.line(cell), markup=False, highlight=False, soft_wrap=True)
        sys.stdout.flush()


_ENGINES: dict[LauncherKind, Callable[[Experiment, list[Cell], Console], None]] = {
    LauncherKind.local: _run_processes,
    LauncherKind.debug: _run_here,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one cell here; the exit code is 0 when it is done, 130 when a signal stopped it, 2 when it failed."""
    paths = sys.argv[1:] if arguments is None else arguments
    if len(paths) != 1 or not (Path(paths[0]) / "config.yaml").is_file():
        print("usage: python -m orchestrator.launch CELL_DIR (a directory with a config.yaml)", file=sys.stderr)
        return 2
    path = Path(paths[0]).resolve()
    state = run_job(str(path))
    if state == "failed":
        print(Manifest(path.parents[1]).last()[f"{path.parent.name}/{path.name}"].reason, file=sys.stderr)
    return {"done": 0, "stopped": 130}.get(state, 2)


if __name__ == "__main__":
    sys.exit(main())
