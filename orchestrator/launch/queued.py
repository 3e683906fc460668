"""The jobs of an experiment in a queue: one for each cell, and one that compares them when all have ended."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from orchestrator import monitoring
from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted
from orchestrator.experiments.dependency import awaited_cells
from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.jobs.worker import is_finished
from orchestrator.launch.jobs import cell_job, finalize_job, waves
from orchestrator.schedulers import chosen, job_states, of_entry
from orchestrator.schedulers.scheduler import NoAnswer, Phase, Scheduler
from orchestrator.storage import lease
from orchestrator.storage.event_log import COMPARISON, Entry, EventLog

NAMED = 6  # jobs that a sentence names before it only counts them
FOLLOW_SECONDS = 2.0


def submit(
    experiment: Experiment,
    cells: list[Cell],
    console: Console | None = None,
    *,
    beside: Mapping[str, str],
    delay: float = 0.0,
) -> None:
    """Submit the cells, each after those whose results it needs, and a finalize after all of them.

    `beside`: cell → job, of cells that the queue already has. `delay`: seconds before the first cells may start.
    Raises `UserError` where the queue refuses a job; the event log then has those that it took, and where possible a
    finalize follows them.
    """
    scheduler = chosen(experiment.config)(experiment.directory)
    taken: dict[str, str] = {}  # cell → job

    def progress() -> str:
        jobs = _named(scheduler, taken.values())
        return f"{len(taken)} of {counted(len(cells), 'cell')} are with {scheduler.title}, as {jobs}"

    try:
        _submit_waves(experiment, cells, taken, beside, delay)
        submit_finalize(experiment, [*taken.values(), *beside.values()])
    except KeyboardInterrupt:
        if console is not None and taken:
            console.print(f"{progress()}; the same command submits the rest.", markup=False, soft_wrap=True)
        raise
    except UserError as error:
        if not taken:
            raise
        missing = "not the comparison"
        if len(taken) < len(cells):
            missing = "not the others"
            try:
                submit_finalize(experiment, [*taken.values(), *beside.values()])
            except UserError:
                missing = "neither the others nor the comparison"
        raise UserError(
            f"{progress()}, but {missing}: {error} The same command then submits what is missing."
        ) from error
    if console is not None:
        jobs = _named(scheduler, taken.values())
        text = f"Submitted {counted(len(taken), 'cell')} to {scheduler.title}: {jobs}."
        console.print(text, markup=False, soft_wrap=True)


def _submit_waves(
    experiment: Experiment, cells: list[Cell], taken: dict[str, str], beside: Mapping[str, str], delay: float
) -> None:
    """Submit the cells in the order in which they need each other; record each as soon as the queue has it."""
    config, events = experiment.config, EventLog(experiment.directory)
    scheduler = chosen(config)(experiment.directory)
    queued = {experiment.directory / cell: job for cell, job in beside.items()}
    before: list[str] = []
    for wave in waves(cells):
        awaited = {path for cell in wave for path in awaited_cells(cell.config, experiment.directory)}
        after = [*before, *(job for path, job in queued.items() if path in awaited)]
        jobs = [cell_job(cell, experiment) for cell in wave]
        ids = scheduler.submit(config, jobs, after=after, delay=0.0 if before else delay)
        for cell, job in zip(wave, ids, strict=True):
            taken[cell.id] = job
            attempt = lease.next_number(cell.directory)
            events.append(cell.id, "submitted", attempt=attempt, job=job, scheduler=scheduler.name)
        before = [taken[cell.id] for cell in wave]


def submit_finalize(experiment: Experiment, after: Iterable[str] = ()) -> bool:
    """Submit a finalize that follows the jobs `after`; False where an earlier one is enough.

    An earlier one is enough as long as it has not begun to compare, since it will see the same cells. The new one
    waits for one that is comparing or ending. The job of this process does not count.
    """
    scheduler = chosen(experiment.config)(experiment.directory)
    events, this_job = EventLog(experiment.directory), scheduler.this_job()
    last, jobs = events.comparison(), list(after)
    if last is not None and not (this_job and this_job.id == last.job):
        with suppress(NoAnswer):
            state = job_states([last], experiment.directory).get(last.queued_as)
            if state and state.phase == Phase.waiting:
                return False
            if state and state.phase == Phase.running and last.state == "submitted":
                return False
            if state and state.has_processes:
                jobs.append(last.job)
    (job,) = scheduler.submit(experiment.config, [finalize_job(experiment)], after=jobs)
    events.append(COMPARISON, "submitted", attempt=1, job=job, scheduler=scheduler.name)
    return True


def still_queued(experiment: Experiment, cells: Iterable[Cell]) -> dict[str, Entry]:
    """Cell → its newest event, of the cells that wait or run in a queue now.

    Raises `UserError` where the queue does not answer, lest cells be submitted twice.
    """
    events = EventLog(experiment.directory)
    last = events.last()
    theirs = {cell.id: last[cell.id] for cell in cells if cell.id in last}
    try:
        known = job_states(theirs.values(), experiment.directory)
    except NoAnswer as error:
        raise UserError(f"{experiment.directory} has jobs in a queue, and {error}.") from error
    return {c: e for c, e in theirs.items() if e.queued_as in known and not known[e.queued_as].has_ended}


def left_to_queue(experiment: Experiment) -> dict[str, Entry]:
    """Unfinished cell → event of the job that runs it, or of the finalize that will compare or submit it again."""
    unfinished = [cell for cell in experiment.cells if not is_finished(cell.directory)]
    last = EventLog(experiment.directory).comparison()
    if last is not None and last.is_open and not _has_ended(last, experiment.directory):
        return {cell.id: last for cell in unfinished}
    return still_queued(experiment, unfinished)


def follow(experiment: Experiment, console: Console) -> bool:
    """Where `launcher.wait` is set, show the jobs until the finalize has ended; True where it has.

    Ctrl-C stops watching, and ends no job.
    """
    if not (chosen(experiment.config).queues and experiment.config.launcher.wait):
        return False
    events, watched = EventLog(experiment.directory), None
    try:
        while True:
            last = events.comparison()
            if watched is None or (last and last.job != watched):  # the finalize may have submitted cells again
                monitoring.watch(experiment.directory, console)
                watched, last = last.job if last else "", events.comparison()
            ended = last is None or not last.is_open or _has_ended(last, experiment.directory)
            if ended and events.comparison() == last:  # else it has submitted another finalize as it ended
                return True
            if not ended:
                time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        console.print("Stopped watching; the jobs go on.")
        return False


def cancel(directory: Path, jobs: Collection[str] | None = None) -> list[str]:
    """End jobs of a queue, by default all; return those that were alive. Raises `UserError` without an answer.

    Cells whose jobs had not begun, or are gone, are recorded as stopped.
    """
    events = EventLog(directory)
    entries = {cell: entry for cell, entry in events.open().items() if jobs is None or entry.job in jobs}
    try:
        known = job_states(entries.values(), directory)
    except NoAnswer as error:
        raise UserError(f"{directory} has jobs that cannot be cancelled: {error}.") from error
    live = {e.job: e for e in entries.values() if e.queued_as in known and not known[e.queued_as].has_ended}
    for one in {entry.scheduler: entry for entry in live.values()}.values():
        of_entry(one, directory).cancel([job for job, entry in live.items() if entry.scheduler == one.scheduler])
    for cell, entry in entries.items():
        if entry.queued_as not in known or known[entry.queued_as].phase == Phase.waiting:
            which = {"job": entry.job, "scheduler": entry.scheduler}
            events.append(cell, "stopped", attempt=entry.attempt, reason="cancelled", **which)
    return list(live)


def title(entries: Iterable[Entry], directory: Path) -> str:
    """The names of the queues that have the jobs of the events."""
    return " and ".join(sorted({of_entry(entry, directory).title for entry in entries}))


def _has_ended(entry: Entry, directory: Path) -> bool:
    """True where that job neither waits nor runs, as far as its queue answers."""
    with suppress(NoAnswer):
        state = job_states([entry], directory).get(entry.queued_as)
        return state is None or state.has_ended
    return False


def _named(scheduler: Scheduler, jobs: Iterable[str]) -> str:
    """`job 7`, `jobs 1, 2 and 3 more`."""
    names = scheduler.names(jobs)
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return f"job{'s' if len(names) > 1 else ''} {listed}"
