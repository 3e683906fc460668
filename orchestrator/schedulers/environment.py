"""The environment without the variables of the cluster's job that this process may be a part of.

A child process that inherited them would take itself for a part of that job.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")  # prefixes of a job's variables
OF_A_TASK = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}


def inherited() -> list[str]:
    """The names of the variables of the job that this process is a part of."""
    if "SLURM_JOB_ID" not in os.environ:
        return []
    return [name for name in os.environ if (name.startswith(OF_A_JOB) or name in OF_A_TASK) and name != "SLURM_CONF"]


def outside_environment() -> dict[str, str]:
    """The environment of this process without the `inherited` variables."""
    hidden = set(inherited())
    return {name: value for name, value in os.environ.items() if name not in hidden}


@contextmanager
def changed(environment: Mapping[str, str]) -> Iterator[None]:
    """Give this process that environment for the length of the block."""
    before = dict(os.environ)
    try:
        _become(environment)
        yield
    finally:
        _become(before)


def _become(environment: Mapping[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
