"""A cell to track; the comparison's experiments, made of files alone, serve here too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator.analysis.conftest import declare, edit_config, edit_metrics, experiment, reading
from tests.orchestrator.tracking.cells import write_cell

__all__ = ["declare", "edit_config", "edit_metrics", "experiment", "reading"]


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cell on disk, in a working directory and a home that must stay empty."""
    for name in ("home", "cwd"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "cwd")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # what the tracker sets is taken back after the test
        monkeypatch.delenv(name)
    return write_cell(tmp_path / "width/uniform/seed=3")
