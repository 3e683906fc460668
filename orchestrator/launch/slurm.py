"""`launcher=slurm`: each cell a job, and the comparison a job that follows them all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from submitit.core.utils import DelayedSubmission

from orchestrator import executors, lease, scheduler
from orchestrator.errors import UserError
from orchestrator.experiment import Cell, Experiment
from orchestrator.job import CellJob
from orchestrator.launch.order import waves
from orchestrator.manifest import COMPARISON, Manifest
from orchestrator.scheduler import SLURM


@dataclass(frozen=True)
class Conclusion:
    """The body of the last job: what is to be done when every cell's job has ended."""

    directory: str

    def __call__(self) -> None:
        from orchestrator.launch.conclude import conclude

        conclude(Path(self.directory))

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts again when the job is preempted: the same."""
        return DelayedSubmission(self)


def submit(experiment: Experiment, cells: list[Cell], console: Console | None = None, begin: float = 0.0) -> None:
    """Submit the cells, those that play others back after them, and what follows all of them.

    `begin`: seconds before the first of them may start.
    """
    config, folder, manifest = experiment.config, experiment.directory / "jobs", Manifest(experiment.directory)
    threads = str(config.train.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, TOKENIZERS_PARALLELISM="false")
    every: list[str] = []
    before: list[str] = []
    for wave in waves(cells):
        later = {"begin": f"now+{round(begin)}"} if begin and not before else {}
        more = {"dependency": _after(before)} if before else {}
        executor = executors.slurm_cells(config, folder, later, job_name=experiment.name, **more)
        bodies = [CellJob(str(cell.directory.resolve())) for cell in wave]
        batches = [bodies] if config.launcher.slurm.array else [[body] for body in bodies]
        jobs = [job for batch in batches for job in executors.submit(executor, *batch)]
        for cell, job in zip(wave, jobs, strict=True):
            attempt = lease.next_number(cell.directory)
            manifest.append(cell.id, "submitted", attempt=attempt, job=job.job_id, scheduler=SLURM)
        before = [job.job_id for job in jobs]
        every += before
    try:
        submit_conclusion(experiment, every)
    except UserError as error:
        raise UserError(
            f"The cells are with Slurm, as jobs {', '.join(every)}, but not the comparison: {error} "
            "The same command then submits it."
        ) from error
    if console is not None:
        console.print(f"Submitted {len(cells)} cells to Slurm, and the comparison after them.")


def submit_conclusion(experiment: Experiment, after: list[str]) -> None:
    """Submit the job that compares, or tries again, when the jobs `after` have ended."""
    executor = executors.slurm_beside(
        experiment.config, experiment.directory / "jobs", job_name=f"{experiment.name}-comparison",
        dependency=_after(after),
    )  # fmt: skip
    (job,) = executors.submit(executor, Conclusion(str(experiment.directory.resolve())))
    Manifest(experiment.directory).append(COMPARISON, "submitted", attempt=1, job=job.job_id, scheduler=SLURM)


def see_to_a_conclusion(experiment: Experiment, jobs: list[str]) -> None:
    """Submit the job that follows `jobs`, where an earlier launch was ended before it could."""
    manifest = Manifest(experiment.directory)
    last = manifest.comparison()
    known = scheduler.jobs([last.job], manifest.owner()) if last else {}
    if last is None or (known is not None and (last.job not in known or known[last.job].has_ended)):
        submit_conclusion(experiment, jobs)


def _after(jobs: list[str]) -> str:
    """A dependency on the end of `jobs`, however they end; an array is named once."""
    return "afterany:" + ":".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
