"""When every cell's job has ended: cells that nobody could try again are, otherwise the comparison is made."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from orchestrator import monitoring
from orchestrator.common.errors import UserError
from orchestrator.experiments import run_directory
from orchestrator.experiments.dependency import needed_cell
from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.experiments.readings import Readings
from orchestrator.jobs import retry
from orchestrator.jobs.worker import is_finished
from orchestrator.launch import queue
from orchestrator.schedulers import slurm
from orchestrator.storage import locks, metrics_log
from orchestrator.storage.event_log import COMPARISON, OPEN, Entry, EventLog
from orchestrator.tracking import run

ASK_TIMES, ASK_SECONDS = 10, 30.0


def finalize(path: Path) -> None:
    """Compare what there is; or, where cells died with their whole job, submit these and another finalize.

    Readings that no job has made are made here first.
    """
    experiment, events, here = run_directory.reopen(path), EventLog(path), slurm.this_job()
    with locks.hold(monitoring.experiment_lock(path)):
        again, pause = _to_try_again(experiment, events)
        still = _with_slurm(experiment, events)  # resubmitted by hand meanwhile
        if again:
            queue.submit(experiment, again, beside=still, begin=pause)
            return
        if still:
            queue.submit_finalize(experiment, still.values())
            return
        job = here.id if here else ""
        # said before the lock is free: whoever submits cells from now on knows that this job will not see to them
        events.append(COMPARISON, "running", attempt=1, job=job, scheduler=slurm.SLURM)
    compared = _compare(experiment)
    of = f"{compared} of {len(experiment.cells)} cells"
    state, reason = ("done", of) if compared else ("failed", "no cell has finished")
    events.append(COMPARISON, state, attempt=1, job=job, reason=reason, scheduler=slurm.SLURM)


def _compare(experiment: Experiment) -> int:
    """How many cells were compared: those that were trained to the end."""
    from orchestrator.analysis import compare, print_summary

    trained = [cell for cell in experiment.cells if _is_trained(cell)]
    if not trained:
        return 0
    for cell in trained:  # of the others nothing is compared, and they will be read when they go on
        _read(cell)
    comparison = compare(experiment.directory)
    print_summary(comparison, Console(width=100))
    run.log_comparison(experiment.config, comparison)
    return len(trained)


def _is_trained(cell: Cell) -> bool:
    """Whether its metrics log ends as one does that a comparison takes."""
    return "test" in (metrics_log.newest(cell.directory / "metrics.jsonl") or {})


def _read(cell: Cell) -> None:
    """Make the readings that no job has made; what cannot be read is said, and the comparison does without it."""
    try:
        readings = Readings(cell.directory, cell.config)
        for checkpoint in readings.unread():
            readings.read(checkpoint)
    except (UserError, OSError) as error:
        print(f"{cell.id} is compared without some of its readings: {error}", flush=True)


def _to_try_again(experiment: Experiment, events: EventLog) -> tuple[list[Cell], float]:
    """The cells whose jobs are gone with everything in them, and after how many seconds to try them again."""
    limits, last = experiment.config.launcher, events.last()
    waiting = [
        cell for cell in experiment.cells if _is_left_to_slurm(last.get(cell.id)) and not is_finished(cell.directory)
    ]
    known = _asked([last[cell.id].job for cell in waiting], events)
    again, longest = [], 0.0
    for cell in waiting:
        entry = last[cell.id]
        job = known.get(entry.job)
        if job is not None and not job.has_ended:
            continue
        if job is not None and job.state.startswith("CANCELLED"):
            which = {"job": entry.job, "scheduler": entry.scheduler}
            events.append(cell.id, "stopped", attempt=entry.attempt, reason="cancelled", **which)
            continue
        if entry.state != "crashed":
            reason = f"its job ended without a word ({job.state if job else 'Slurm does not know it any more'})"
            retry.died(events, cell.id, reason, attempt=entry.attempt, job=entry.job, scheduler=entry.scheduler)
        pause = retry.pause_or_give_up(events, cell.id, limits.retries, limits.backoff_seconds)
        if pause is not None:
            again.append(cell)
            longest = max(longest, pause)
    # and those that failed for want of what these will decide
    sources = {cell.directory for cell in again}
    for cell in experiment.cells:
        failed = cell.id in last and last[cell.id].state == "failed"
        if failed and needed_cell(cell.config, experiment.directory) in sources:
            again.append(cell)
    return again, longest


def _asked(jobs: list[str], events: EventLog) -> dict[str, slurm.Job]:
    """What Slurm knows of the jobs; asked again for some minutes where it does not answer. Raises `UserError` then."""
    for _ in range(ASK_TIMES):
        if (known := slurm.jobs(jobs, events.path.parent, events.owner())) is not None:
            return known
        time.sleep(ASK_SECONDS)
    raise UserError(f"Slurm does not answer (squeue): python -m orchestrator.compare {events.path.parent} compares.")


def _with_slurm(experiment: Experiment, events: EventLog) -> dict[str, str]:
    """Cell → job, of those that have not ended."""
    last = events.last()
    theirs = {cell.id: last[cell.id].job for cell in experiment.cells if _is_left_to_slurm(last.get(cell.id))}
    known = _asked(list(theirs.values()), events)
    return {cell: job for cell, job in theirs.items() if job in known and not known[job].has_ended}


def _is_left_to_slurm(entry: Entry | None) -> bool:
    return entry is not None and bool(entry.scheduler) and entry.state in OPEN
