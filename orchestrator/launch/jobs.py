"""The jobs of an experiment: one for each cell, in the order of their needs, and one that compares them."""

from __future__ import annotations

import sys
from collections.abc import Collection

from orchestrator.config.schema import Config
from orchestrator.experiments.dependency import awaited_cells
from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.schedulers.scheduler import Job, Resources


def cell_job(cell: Cell, experiment: Experiment, gpus: str | None = None) -> Job:
    """The job that runs a cell, on `gpus` (a value of CUDA_VISIBLE_DEVICES) or, where None, on all that it is given.

    In a queue, the job retries itself when its process has died.
    """
    launcher, environment = experiment.config.launcher, _threads(cell.config)
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    limits = (f"--retries={launcher.retries}", f"--backoff={launcher.backoff_seconds}")
    retry = (sys.executable, "-m", "orchestrator.jobs.retry", *limits, str(experiment.directory.resolve()))
    cell_dir = str(cell.directory.resolve())
    return Job("orchestrator.job", (cell_dir,), experiment.name, Resources.cell, environment, retry)


def finalize_job(experiment: Experiment) -> Job:
    """The job that compares the cells, or submits those again that died."""
    path = str(experiment.directory.resolve())
    name = f"{experiment.name}-comparison"
    return Job("orchestrator.launch.finalize", (path,), name, environment=_threads(experiment.config))


def _threads(config: Config) -> dict[str, str]:
    """The variables that keep a process to `train.threads` threads."""
    threads = str(config.train.threads)
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}


def is_ready(cell: Cell, unfinished: Collection[Cell]) -> bool:
    """True where the cell waits for none of the `unfinished` cells."""
    awaited = awaited_cells(cell.config, cell.directory.parents[1])
    return awaited.isdisjoint(other.directory for other in unfinished)


def waves(cells: list[Cell]) -> list[list[Cell]]:
    """The cells in groups, each of which may begin when those before it have ended."""
    groups, left = [], list(cells)
    while left:
        ready = [cell for cell in left if is_ready(cell, left)] or left  # in a circle: each fails, and says why
        groups.append(ready)
        left = [cell for cell in left if cell not in ready]
    return groups
