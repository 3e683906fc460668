"""A command whose tracker cannot work is refused before anything is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.schema import TrackerMode
from orchestrator.tracking import run
from tests.naming import names, naming
from tests.orchestrator.tracking.cells import config_of


def call_check(home: Path, **environment: str) -> tuple[int, str]:
    """`run.check` for mode online in a process with nothing but `environment`."""
    program = (
        "from orchestrator.tracking import run; from orchestrator.config.schema import *\n"
        "try: run.check(Config(tracker=TrackerConfig(mode=TrackerMode.online)))\n"
        "except Exception as e: print(type(e).__name__, e); raise SystemExit(2)"
    )
    env = {"HOME": str(home), "PATH": os.environ["PATH"], **environment}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)
    return done.returncode, done.stdout + done.stderr


def test_online_needs_a_key_before_anything_is_trained(tmp_path: Path) -> None:
    code, said = call_check(tmp_path)
    assert code == 2
    assert names(said, "UserError", "tracker=online", "no API key")
    assert len(said.strip().splitlines()) == 1
    assert names(call_check(tmp_path, WANDB_API_KEY="short")[1], "UserError", "tracker=online", "log in")
    assert call_check(tmp_path, WANDB_API_KEY="0123456789" * 4) == (0, "")


def test_offline_and_off_need_no_key(cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.check(config_of(TrackerMode.offline))
    run.check(config_of(TrackerMode.off))
    monkeypatch.setattr(sys, "path", [])  # no package can be found any more
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match=naming("tracker=offline", "wandb")):
        run.check(config_of(TrackerMode.offline))
    run.check(config_of(TrackerMode.off))
