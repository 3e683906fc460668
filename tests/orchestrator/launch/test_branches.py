"""Extending and branching with real processes, really killed: the weights are those of runs that nobody touched."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.storage import checkpoint, metrics_log
from tests.orchestrator.launch.test_launch import cell_process, leftovers, start, step_reached
from tests.waiting import PATIENCE, wait_for

__all__ = ["leftovers"]  # the fixture

pytestmark = pytest.mark.slow

FALLS = "'optim.schedule=wsd','optim.decay_fraction=0.5'"
LONGER = ("train.checkpoint_every=20", "forensics.every=60", "launcher.retries=0")
LATE = f"[{FALLS},'branch={{arm: trunk, step: 60}}']"
ARMS = (
    f"++arms={{trunk: ['optim.schedule=constant'], late: {LATE}, apart: [{FALLS}]}}",
    "declared=[optim,branch]", "name=x",
)  # fmt: skip


def weights(directory: Path, arm: str, step: int) -> str:
    path = checkpoint.path_of(directory / arm / "seed=0/checkpoints", step)
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.usefixtures("leftovers")
def test_killed_as_it_branches_and_as_it_is_extended(
    small_cell: tuple[str, ...], orchestrate: Callable[..., int], tmp_path: Path
) -> None:
    def launch(steps: int) -> Callable[[], int]:
        options = [*small_cell, *LONGER, f"train.steps={steps}", f"root={tmp_path}/broken"]
        started = start(options, tmp_path / "broken.log", ARMS)
        return lambda: started.wait(PATIENCE)

    def kill(cell: str, step: int) -> None:
        wait_for(step_reached(directory, cell, step))
        os.kill(cell_process(directory, cell) or 0, signal.SIGKILL)

    untouched = (*small_cell, *LONGER, *ARMS, "train.steps=160", f"root={tmp_path}/whole", "seeds=[0]")
    assert orchestrate(*untouched, "launcher=debug") == 0
    directory = tmp_path / "broken/x"
    ended = launch(120)
    kill("late/seed=0", 66)
    assert ended() == 2
    assert launch(120)() == 0, (tmp_path / "broken.log").read_text()
    assert weights(directory, "late", 120) == weights(directory, "apart", 120)
    ended = launch(160)
    kill("apart/seed=0", 130)
    assert ended() == 2
    assert launch(160)() == 0, (tmp_path / "broken.log").read_text()
    for arm in ("trunk", "late", "apart"):
        assert weights(directory, arm, 160) == weights(tmp_path / "whole/x", arm, 160)
        records = metrics_log.read(directory / arm / "seed=0/metrics.jsonl")
        assert [r["step"] for r in records] == list(range(0, 161, 2))
