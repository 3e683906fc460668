"""An experiment from its directory alone: resumed, or cancelled."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from orchestrator import lease, locks, scheduler, status
from orchestrator.directory import reopen
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.launch import check_jobs, launch, prepare_data, refuse_early, with_a_scheduler
from orchestrator.manifest import COMPARISON, OPEN, Manifest

WHICH = {
    "failed": {"failed"},
    "unfinished": {"failed", "lost", "stopped", "next"},
    "all": {"failed", "lost", "stopped", "next", "zombie", "queued", "preempted"},
}  # argument of --resume → states of the cells that are launched


def resume(path: Path, which: str, console: Console) -> Experiment | None:
    """Launch the cells that `which` names, as they were last launched; zombies and waiting jobs are cancelled first.

    Returns the experiment of all its cells, null where there was none to launch. Raises `UserError` as a launch does.
    """
    experiment = reopen(path)
    with_a_scheduler(experiment, list(experiment.cells))  # raises where it cannot be asked
    seen = status.read_status(path)
    found = {cell.cell: cell for cell in seen if cell.state in WHICH[which]}
    chosen = [cell for cell in experiment.cells if cell.id in found]
    if not chosen:
        counted = Counter(cell.state for cell in seen)
        console.print(f"Nothing to resume: {', '.join(f'{n} {state}' for state, n in counted.items())}.")
        return None
    console.print(f"{len(chosen)} of {len(seen)} cells, with launcher={experiment.config.launcher.kind} as before.")
    part = replace(experiment, cells=tuple(chosen))
    refuse_early(part)
    check_jobs(part)
    prepare_data(part, console)
    held = [cell.job for cell in found.values() if cell.state in ("zombie", "queued", "preempted")]
    if held and _cancel_jobs(path, held):
        console.print(f"Cancelled {', '.join(held)}, which had these cells.", markup=False)
    launch(part, console, cancelled=held)
    return experiment


def cancel(path: Path, console: Console) -> None:
    """End everything that runs or waits of an experiment; cells that run save first. Raises `UserError`."""
    cells, manifest = status.read_status(path), Manifest(path)
    last, comparison = manifest.last(), manifest.comparison()
    jobs = [e.job for e in [*last.values(), *([comparison] if comparison else [])] if e.scheduler and e.state in OPEN]
    known = scheduler.jobs(jobs, manifest.owner())
    if known is None:
        raise UserError(f"{path} has jobs with Slurm, which cannot be asked here: cancel them from a login node.")
    ended = _cancel_jobs(path, [job for job in dict.fromkeys(jobs) if job in known and not known[job].has_ended])
    launcher = locks.holder(status.experiment_lock(path))
    if launcher is not None:
        os.kill(launcher, signal.SIGTERM)  # and it stops its cells
        ended.append(f"the launcher (process {launcher})")
    else:
        ended += _stop_orphans(path, [cell.cell for cell in cells if cell.state == "running"])
    said = f"Asked to end: {', '.join(ended)}. Cells that run save first." if ended else "Nothing runs or waits."
    console.print(said, markup=False, soft_wrap=True)


def _cancel_jobs(path: Path, jobs: list[str]) -> list[str]:
    """Cancel jobs of Slurm, and record of those that had not begun that they never will."""
    if not jobs:
        return []
    manifest = Manifest(path)
    known = scheduler.jobs(jobs, manifest.owner()) or {}  # what has ended meanwhile need not be cancelled
    if not scheduler.cancel([job for job in jobs if job in known and not known[job].has_ended]):
        raise UserError(f"Slurm did not cancel {', '.join(jobs)}: try scancel yourself.")
    entries = manifest.last() | ({COMPARISON: last} if (last := manifest.comparison()) else {})
    for cell, entry in entries.items():
        if entry.job in jobs and entry.state in OPEN and (entry.job not in known or known[entry.job].is_waiting):
            manifest.append(cell, "stopped", attempt=entry.attempt, job=entry.job, reason="cancelled")
    return [f"job {job}" for job in jobs]


def _stop_orphans(path: Path, cells: list[str]) -> list[str]:
    """Cells of this machine whose launcher is gone."""
    stopped = []
    for cell in cells:
        claim = lease.newest(path / cell)
        if claim is not None and claim.is_here() and claim.is_alive() and claim.pid:
            os.kill(claim.pid, signal.SIGTERM)
            stopped.append(f"{cell} (process {claim.pid})")
    return stopped
