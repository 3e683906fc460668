"""One cell as a job: `python -m orchestrator.job CELL_DIR` runs or resumes it in this process."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import submitit

from orchestrator import checkpoint, ledger, locks, schema, status
from orchestrator.environment import environment
from orchestrator.errors import UserError
from orchestrator.manifest import Manifest
from orchestrator.readings import Readings
from orchestrator.run import Run
from orchestrator.schema import Config
from orchestrator.train import StopSignal, train_cell


def run_job(cell_dir: str, gpu: str | None = None) -> str:
    """The body of a job: run or resume one cell and leave its outcome in the manifest; return the state.

    `gpu` is the one device it may see, as CUDA_VISIBLE_DEVICES names it. Waits for a process that may still be
    running the cell (one that outlived its launcher), then finds the cell finished or goes on from where that
    process left it. Never raises: a failed cell is a recorded state.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    path = Path(cell_dir)
    try:
        with (
            StopSignal() as stop,
            locks.hold(status.cell_lock(path), give_up=lambda: stop.received is not None) as free,
        ):
            if not free:
                return "stopped"  # and the process that holds the cell goes on
            return "done" if is_finished(path) else _run(path, stop)
    except UserError as error:  # not even the manifest could be written
        print(error, file=sys.stderr)
        return "failed"


def _run(path: Path, stop: StopSignal) -> str:
    cell, manifest = f"{path.parent.name}/{path.name}", Manifest(path.parents[1])
    attempt, job = manifest.attempts(cell) + 1, _job_id()

    def note(state: str, reason: str = "", where: dict[str, Any] | None = None) -> str:
        manifest.append(cell, state, attempt=attempt, job=job, reason=reason, environment=where)
        return state

    def started(run: Run, warnings: list[str]) -> None:
        reason = " ".join([*warnings, f"resumed at step {run.step}" if run.step else ""]).strip()
        note("running", reason, environment(run.device))

    try:
        finished = train_cell(path, stop, attempt, started)
    except UserError as error:
        return note("failed", str(error))
    except Exception as error:
        traceback.print_exc()
        return note("failed", f"{type(error).__name__}: {error}")
    return note("done" if finished else "stopped")


def is_finished(cell_dir: Path) -> bool:
    """Whether the manifest calls the cell done, and its last checkpoint and record and every due reading are there."""
    entry = Manifest(cell_dir.parents[1]).last().get(f"{cell_dir.parent.name}/{cell_dir.name}")
    if entry is None or entry.state != "done":
        return False
    config = _config_of(cell_dir)
    last, record = config.train.steps, ledger.newest(cell_dir / "ledger.jsonl")
    return (
        checkpoint.path_of(cell_dir / "checkpoints", last).is_dir()
        and record is not None
        and record["step"] == last
        and not Readings(cell_dir, config).unread()
    )


@cache
def _config_of(cell_dir: Path) -> Config:
    """Read once: it does not change while the cell has its name."""
    return schema.load(cell_dir / "config.yaml")


def _job_id() -> str:
    """What the scheduler calls this job; the process, where there is none."""
    try:
        return submitit.JobEnvironment().job_id
    except RuntimeError:
        return str(os.getpid())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one cell here; the exit code is 0 when it is done, 130 when a signal stopped it, 2 when it failed."""
    paths = sys.argv[1:] if arguments is None else arguments
    if len(paths) != 1 or not (Path(paths[0]) / "config.yaml").is_file():
        print("usage: python -m orchestrator.job CELL_DIR (a directory with a config.yaml)", file=sys.stderr)
        return 2
    path = Path(paths[0]).resolve()
    state = run_job(str(path))
    if state == "failed":
        last = Manifest(path.parents[1]).last().get(f"{path.parent.name}/{path.name}")
        print(last.reason if last else "failed", file=sys.stderr)
    return {"done": 0, "stopped": 130}.get(state, 2)


if __name__ == "__main__":
    sys.exit(main())
