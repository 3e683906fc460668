"""An experiment from its directory alone: resumed, or cancelled."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from orchestrator import monitoring
from orchestrator.common.errors import UserError
from orchestrator.config.schema import LauncherKind
from orchestrator.experiments.experiment import Experiment
from orchestrator.experiments.run_directory import reopen
from orchestrator.launch import alone, check_jobs, launch, prepare_data, queue, refuse_early, with_a_scheduler
from orchestrator.schedulers import slurm
from orchestrator.storage import lease, locks
from orchestrator.storage.event_log import EventLog

WHICH = {
    "failed": {"failed"},
    "unfinished": {"failed", "lost", "stopped", "next"},
    "all": {"failed", "lost", "stopped", "next", "zombie", "queued", "preempted"},
}  # argument of --resume → states of the cells that are launched
HELD = {"zombie", "queued", "preempted"}  # states of cells whose jobs are cancelled first


def resume(path: Path, which: str, console: Console) -> Experiment | None:
    """Launch the cells that `which` names, as they were last launched; zombies and waiting jobs are cancelled first.

    Where all are done and the job that should have compared them is gone, that one is submitted.
    Returns the experiment of all its cells, null where there was none to launch. Raises `UserError` as a launch does.
    """
    experiment = reopen(path)
    with alone(path):  # said before anything else is
        pass
    with_a_scheduler(experiment, list(experiment.cells))  # raises where it cannot be asked
    seen = monitoring.read_status(path)
    found = {cell.cell: cell for cell in seen if cell.state in WHICH[which]}
    chosen = [cell for cell in experiment.cells if cell.id in found]
    if not chosen:
        if all(cell.state == "done" for cell in seen) and _compare_again(experiment, console):
            return None
        counted = Counter(cell.state for cell in seen)
        console.print(f"Nothing to resume: {', '.join(f'{n} {state}' for state, n in counted.items())}.")
        return None
    console.print(f"{len(chosen)} of {len(seen)} cells, with launcher={experiment.config.launcher.kind} as before.")
    part = replace(experiment, cells=tuple(chosen))
    refuse_early(part)
    check_jobs(part)
    prepare_data(part, console)
    held = [cell.cell for cell in found.values() if cell.state in HELD]
    launch(experiment, console, only=found, cancel=held)
    return experiment


def _compare_again(experiment: Experiment, console: Console) -> bool:
    """Submit the job that compares where the last one has come to nothing; whether it was."""
    if experiment.config.launcher.kind != LauncherKind.slurm:
        return False
    with alone(experiment.directory):
        last = EventLog(experiment.directory).comparison()
        if (last is not None and last.state == "done") or not queue.submit_finalize(experiment):
            return False
    console.print("All cells are done, but their comparison is not: it is submitted again.")
    return True


def cancel(path: Path, console: Console) -> None:
    """End everything that runs or waits of an experiment; cells that run save first. Raises `UserError`."""
    cells, events = monitoring.read_status(path), EventLog(path)
    jobs = list(dict.fromkeys(entry.job for entry in queue.open_entries(events).values()))
    known = slurm.jobs(jobs, path, events.owner())
    if known is None:
        raise UserError(f"{path} has jobs with Slurm, which cannot be asked here: cancel them from a login node.")
    live = [job for job in jobs if job in known and not known[job].has_ended]
    queue.cancel(path, live)
    ended = [f"job {job}" for job in live]
    launcher = locks.holder(monitoring.experiment_lock(path))
    if launcher is not None:
        os.kill(launcher, signal.SIGTERM)  # and it stops its cells
        ended.append(f"the launcher (process {launcher})")
    else:
        ended += _stop_orphans(path, [cell.cell for cell in cells if cell.state == "running" and cell.job not in live])
    said = (
        f"Asked to end: {', '.join(ended)}. Cells that run save first."
        if ended
        else "Nothing runs or waits; --resume goes on."
    )
    console.print(said, markup=False, soft_wrap=True)


def _stop_orphans(path: Path, cells: list[str]) -> list[str]:
    """Cells of this machine whose launcher is gone."""
    stopped = []
    for cell in cells:
        claim = lease.newest(path / cell)
        if claim is not None and claim.is_here() and claim.is_alive() and claim.pid:
            os.kill(claim.pid, signal.SIGTERM)
            stopped.append(f"{cell} (process {claim.pid})")
    return stopped
