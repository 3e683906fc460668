"""`hydra/launcher=submitit_slurm` on a real cluster: each job is a whole experiment that outlives a preemption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.storage import metrics_log
from tests.cluster.slurm import Cluster
from tests.naming import names
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.cluster


def test_a_multirun_goes_through_slurm_a_preemption_and_a_failure(
    cluster: Cluster, small_cell: tuple[str, ...], tmp_path: Path
) -> None:
    """Needs of `cluster` only `.env`: what subprocesses need for sbatch, squeue, scancel and scontrol to work."""
    environment = {**os.environ, **cluster.env}

    def slurm(*words: str) -> str:
        return subprocess.run(words, env=environment, capture_output=True, text=True).stdout

    command = [
        sys.executable, "-m", "orchestrator", "-m", *small_cell, "name=sweep", "train.steps=1500", "train.log_every=5",
        "train.eval_every=500", "train.checkpoint_every=1500", "forensics.every=1500", "optim.weight_decay=0",
        "optim.lr=0.001,1e36", "hydra/launcher=submitit_slurm", "root=out",
    ]  # fmt: skip
    log, cell = tmp_path / "log", tmp_path / "out/sweep__optim.lr=0.001/main/seed=0"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=tmp_path)
    try:
        wait_for(
            lambda: (metrics_log.newest(cell / "metrics.jsonl") or {"step": 0})["step"] >= 20, process=process, log=log
        )
        job = next(
            path.name for path in tmp_path.glob("out/.multirun/*/logs/*_0_submitted.pkl")
        )  # the first of the array
        job = job.removesuffix("_submitted.pkl")
        slurm("scancel", "--signal=USR2", job)  # what Slurm sends before it preempts, and before the time limit
        wait_for(lambda: "PENDING" in slurm("squeue", "-h", "-r", "-j", job, "-o", "%T"), process=process, log=log)
        assert process.wait(PATIENCE) == 2, log.read_text()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        slurm("scancel", "--name=orchestrator")
    said = log.read_text()
    assert "Traceback" not in said
    assert said.count("optim.lr=1e+36: main/seed=0 failed: ") == 1
    assert said.index(" 2 jobs: ") < said.index("out/sweep__optim.lr=0.001  1 done")
    assert "out/sweep__optim.lr=1e+36  1 failed" in said
    records = metrics_log.read(cell.parents[1] / "events.jsonl")
    resumed = [r["reason"] for r in records if r["state"] == "running"]
    assert len(resumed) == 2
    assert int(resumed[1].rpartition(" ")[2]) >= 20, "no step was lost"
    assert records[-1]["state"] == "done"
    assert all(r["job"].isdigit() for r in records), "a cell inside the job is a process, not the job"
    assert (cell.parents[1] / "comparison/verdict.json").is_file()


def test_jobs_that_slurm_refuses_are_reported_once(
    cluster: Cluster, small_cell: tuple[str, ...], tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "orchestrator", "-m", *small_cell, "name=sweep", "optim.lr=0.001,0.002", "root=out",
        "hydra/launcher=submitit_slurm", "hydra.launcher.partition=nowhere",
    ]  # fmt: skip
    environment = {**os.environ, **cluster.env}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stdout.splitlines()) == 1, "nothing but where the logs would be"
    assert ended.stderr.lower().count("invalid partition name") == 1, ended.stderr
    assert names(ended.stderr, "Slurm", "multirun")
    assert "Traceback" not in ended.stderr
