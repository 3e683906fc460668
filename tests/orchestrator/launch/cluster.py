"""Helpers for tests that launch on a scripted cluster."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from rich.console import Console

from orchestrator.experiments.experiment import Experiment
from orchestrator.storage.event_log import EventLog

FOUR = ("++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "seeds=[0,1]")
Made = Callable[..., Experiment]


def console() -> Console:
    return Console(file=io.StringIO(), width=1000)


def printed(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def jobs(experiment: Experiment, state: str = "submitted") -> dict[str, str]:
    return {c: entry.job for c, entry in EventLog(experiment.directory).last().items() if entry.state == state}


def with_state(experiment: Experiment, cells: Sequence[str], state: str) -> None:
    for cell in cells:
        EventLog(experiment.directory).append(cell, "running", attempt=1, job="1", scheduler="slurm")
        EventLog(experiment.directory).append(cell, state, attempt=1, job="1", scheduler="slurm")
