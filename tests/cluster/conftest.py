"""A cluster for all tests of a session, and the two ways in which a user meets it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.slurm import PROGRAMS, Cluster
from tests.waiting import PATIENCE

# Long enough to be interrupted, and to go on after it: some ten seconds. Checkpoints are rare, so that what is
# resumed is what the interruption saved.
LONG = (
    "train.steps=1500", "train.checkpoint_every=700", "forensics.every=700", "train.log_every=10",
    "train.eval_every=500",
)  # fmt: skip


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running Slurm. Skips where it is not installed."""
    if missing := [name for name in PROGRAMS if not (shutil.which(name) or Path(f"/usr/sbin/{name}").exists())]:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)")
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Run:
    """`python -m MODULE ARGUMENTS` on a login node."""

    def call(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, env=cluster.env, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)

    return call


@pytest.fixture(scope="session")
def long_cell(small_cell: Sequence[str]) -> tuple[str, ...]:
    return (*small_cell, *LONG)
