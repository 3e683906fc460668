"""A cluster whose answers a test scripts, and experiments to launch on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator.config.compose import CONF, compose
from orchestrator.experiments.experiment import Experiment, experiment_of
from orchestrator.experiments.run_directory import open_directory
from tests.orchestrator.launch.cluster import Made
from tests.orchestrator.schedulers.scripted import Scripted


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{scripted.bin}:{os.environ['PATH']}")
    monkeypatch.setattr("orchestrator.monitoring.cells.PATIENCE", 1e-9)
    return scripted


@pytest.fixture
def made(small: list[str], cluster: Scripted) -> Made:
    """The experiment of these overrides, in its directory, with nothing launched."""

    def make(*overrides: str) -> Experiment:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            experiment = experiment_of([*small, "name=x", "launcher=slurm", *overrides], compose)
            open_directory(experiment)
        return experiment

    return make
