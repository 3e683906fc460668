"""Readings that training leaves to jobs of the queue."""

from __future__ import annotations

import os
import threading

import pytest

from orchestrator.experiments.readings import Readings
from orchestrator.jobs.readers import BesideQueue
from tests.orchestrator.launch.cluster import Made
from tests.orchestrator.schedulers.scripted import Scripted
from tests.waiting import PATIENCE, wait_for


def test_training_neither_waits_for_slurm_nor_loses_its_environment(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = made().cells
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_CONF", "RANK"):
        monkeypatch.setenv(name, "1")
    cluster.says("busy", "")  # until it is gone, sbatch does not return
    reader = BesideQueue(Readings(cell.directory, cell.config))
    for step in (0, 6, 12):
        reader.add(cell.directory / f"checkpoints/step_{step:08d}")
    wait_for(lambda: cluster.asked("sbatch"))
    assert reader.job is None
    assert {"SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "RANK"} <= os.environ.keys()
    reader.add(cell.directory)  # what the job that is being submitted may miss
    (cluster.root / "busy").unlink()
    wait_for(lambda: cluster.asked("squeue"))  # whether that one has begun: it has not
    wait_for(lambda: not reader.wanted.is_set())
    assert reader.job == "1"
    assert not cluster.environment("sbatch") & {"SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "RANK"}
    assert "SLURM_CONF" in cluster.environment("sbatch")
    assert cluster.submitted() == ["1 x-readings"]
    cluster.become("1", "RUNNING")
    reader.add(cell.directory)
    wait_for(lambda: len(cluster.submitted()) == 2)
    reader.close()
    assert "readings" not in {thread.name for thread in threading.enumerate()}


def test_a_cell_that_has_ended_waits_for_no_answer_of_slurm(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = made().cells
    monkeypatch.setattr("orchestrator.jobs.readers.JOIN_SECONDS", 0.05)
    cluster.says("busy", "")
    reader = BesideQueue(Readings(cell.directory, cell.config))
    reader.add(cell.directory)
    wait_for(lambda: cluster.asked("sbatch"))
    reader.close()
    assert cluster.submitted() == []
    (cluster.root / "busy").unlink()
    reader.thread.join(PATIENCE)
    assert cluster.submitted() == ["1 x-readings"], "what was on its way arrives, as long as the process lives"
