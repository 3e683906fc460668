"""`launcher=local`: what a process that it starts sees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.config.schema import Config
from orchestrator.schedulers.local import Local
from orchestrator.schedulers.scheduler import STARTED_BY, Job

MODULE = """
import json, os, pathlib
def main(arguments):
    pathlib.Path(arguments[0]).write_text(json.dumps(dict(os.environ)))
    return 0
"""


@pytest.mark.parametrize("gpus", ["3", "0,2"])
def test_a_job_sees_the_gpus_and_threads_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str
) -> None:
    """submitit hides every GPU from a job for which it was asked none."""
    (tmp_path / "tells.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    local, seen = Local(tmp_path / "x"), tmp_path / "seen.json"
    environment = {"CUDA_VISIBLE_DEVICES": gpus, "OMP_NUM_THREADS": "1"}
    (id,) = local.submit(Config(), [Job("tells", (str(seen),), "x", environment=environment)])
    local.jobs[id].result()
    found = json.loads(seen.read_text())
    assert {name: found[name] for name in environment} == environment
    assert found[STARTED_BY] == "local"
