"""`launcher=slurm`: each cell a job, and the comparison a job that follows them all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from rich.console import Console
from submitit.core.utils import DelayedSubmission

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted
from orchestrator.experiments.dependency import needed_cell
from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.jobs.worker import CellJob
from orchestrator.launch.order import waves
from orchestrator.schedulers import slurm, submission
from orchestrator.schedulers.slurm import SLURM
from orchestrator.storage import lease
from orchestrator.storage.event_log import COMPARISON, OPEN, Entry, EventLog

NAMED = 6  # jobs that a sentence names before it only counts them


@dataclass(frozen=True)
class Finalize:
    """The body of the last job: what is to be done when every cell's job has ended."""

    directory: str

    def __call__(self) -> None:
        from orchestrator.launch.finalize import finalize

        finalize(Path(self.directory))

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts again when the job is preempted: the same."""
        return DelayedSubmission(self)


def submit(
    experiment: Experiment,
    cells: list[Cell],
    console: Console | None = None,
    *,
    beside: Mapping[str, str] = MappingProxyType({}),
    begin: float = 0.0,
) -> None:
    """Submit the cells, those that play others back after them, and what follows all of them.

    `beside`: cell → job, of cells that Slurm already has, which may be played back, too. `begin`: seconds before the
    first of the cells may start.
    Raises `UserError` where Slurm does not take all; the rest is with it, in the event log, and as far as it can be
    with a finalize.
    """
    threads = str(experiment.config.train.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, TOKENIZERS_PARALLELISM="false")
    taken: dict[str, str] = {}  # cell → job
    try:
        _submit_waves(experiment, cells, taken, beside, begin)
        submit_finalize(experiment, [*taken.values(), *beside.values()])
    except KeyboardInterrupt:
        if console is not None and taken:
            console.print(f"{_said(taken, cells)}; the same command submits the rest.", markup=False, soft_wrap=True)
        raise
    except UserError as error:
        if not taken:
            raise
        raise UserError(
            f"{_said(taken, cells)}, but {_rest(experiment, cells, taken, beside)}: {error} "
            "The same command then submits what is missing."
        ) from error
    if console is not None:
        jobs = _named(taken.values())
        console.print(f"Submitted {counted(len(taken), 'cell')} to Slurm: {jobs}.", markup=False, soft_wrap=True)


def _submit_waves(
    experiment: Experiment, cells: list[Cell], taken: dict[str, str], beside: Mapping[str, str], begin: float
) -> None:
    """Submit the cells in the order of what they play back; each is in the event log and `taken` once Slurm has it."""
    config, folder, events = experiment.config, experiment.directory / "jobs", EventLog(experiment.directory)
    running = {experiment.directory / cell: job for cell, job in beside.items()}
    before: list[str] = []
    for wave in waves(cells):
        sources = (needed_cell(cell.config, cell.directory.parents[1]) for cell in wave)
        after = [*before, *(running[source] for source in sources if source in running)]
        later = {"begin": f"now+{round(begin)}"} if begin and not before else {}
        more = {"dependency": _after(after)} if after else {}
        executor = submission.slurm_cells(config, folder, later, job_name=experiment.name, **more)
        for batch in [wave] if config.launcher.slurm.array else [[cell] for cell in wave]:
            jobs = submission.submit(executor, *(CellJob(str(cell.directory.resolve())) for cell in batch))
            for cell, job in zip(batch, jobs, strict=True):
                attempt = lease.next_number(cell.directory)
                events.append(cell.id, "submitted", attempt=attempt, job=job.job_id, scheduler=SLURM)
                taken[cell.id] = job.job_id
        before = [taken[cell.id] for cell in wave]


def _rest(experiment: Experiment, cells: list[Cell], taken: Mapping[str, str], beside: Mapping[str, str]) -> str:
    """What is missing, now that Slurm took the cells in `taken` and then refused. What it has, a finalize follows."""
    if len(taken) == len(cells):
        return "not the comparison"
    try:
        submit_finalize(experiment, [*taken.values(), *beside.values()])
    except UserError:
        return "neither the others nor the comparison"
    return "not the others"


def submit_finalize(experiment: Experiment, after: Iterable[str] = ()) -> bool:
    """Submit the job that compares, or tries again, when the jobs `after` have ended; whether there was need for it.

    An earlier one that has not begun to compare will see everything that this one would: it is enough. One that is
    comparing now, or ending, is waited for. The job that this process is a part of does not count.
    """
    events, here = EventLog(experiment.directory), slurm.this_job()
    last, jobs = events.comparison(), list(after)
    if last is not None and not (here and here.id == last.job):
        known = (slurm.jobs([last.job], experiment.directory, events.owner()) or {}).get(last.job)
        if known is not None and (known.is_waiting or (known.state == "RUNNING" and last.state == "submitted")):
            return False
        if known is not None and known.is_running:
            jobs.append(last.job)
    executor = submission.slurm_beside(
        experiment.config, experiment.directory / "jobs", job_name=f"{experiment.name}-comparison",
        dependency=_after(jobs) if jobs else None,
    )  # fmt: skip
    (job,) = submission.submit(executor, Finalize(str(experiment.directory.resolve())))
    events.append(COMPARISON, "submitted", attempt=1, job=job.job_id, scheduler=SLURM)
    return True


def cancel(directory: Path, jobs: list[str]) -> None:
    """Cancel jobs of Slurm, and record of those that had not begun that they never will. Raises `UserError`."""
    if not jobs:
        return
    events = EventLog(directory)
    known = slurm.jobs(jobs, directory, events.owner())  # what has ended meanwhile need not be cancelled
    if known is None or not slurm.cancel([job for job in jobs if job in known and not known[job].has_ended]):
        raise UserError(f"Slurm did not cancel {', '.join(jobs)}: try scancel yourself.")
    for cell, entry in open_entries(events).items():
        if entry.job in jobs and (entry.job not in known or known[entry.job].is_waiting):
            which = {"job": entry.job, "scheduler": entry.scheduler}
            events.append(cell, "stopped", attempt=entry.attempt, reason="cancelled", **which)


def open_entries(events: EventLog) -> dict[str, Entry]:
    """Cell, or the comparison, → its last word, where that leaves it with Slurm."""
    entries = events.last() | ({COMPARISON: last} if (last := events.comparison()) else {})
    return {cell: entry for cell, entry in entries.items() if entry.scheduler and entry.state in OPEN}


def _said(taken: Mapping[str, str], cells: list[Cell]) -> str:
    return f"{len(taken)} of {counted(len(cells), 'cell')} are with Slurm, as {_named(taken.values())}"


def _named(jobs: Iterable[str]) -> str:
    """`job 7`, `jobs 1, 2 and 3 more`."""
    names = _arrays(jobs)
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return f"job{'s' if len(names) > 1 else ''} {listed}"


def _arrays(jobs: Iterable[str]) -> list[str]:
    """Every job once, and an array once."""
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))


def _after(jobs: Iterable[str]) -> str:
    """A dependency on the end of `jobs`, however they end."""
    return "afterany:" + ":".join(_arrays(jobs))
