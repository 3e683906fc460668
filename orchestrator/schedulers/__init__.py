"""The schedulers, which start jobs: one class each, found by its name."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from orchestrator.common.errors import UserError, nearest
from orchestrator.config.schema import Config
from orchestrator.schedulers.in_process import InProcess
from orchestrator.schedulers.local import Local
from orchestrator.schedulers.scheduler import STARTED_BY, JobState, Scheduler
from orchestrator.schedulers.slurm.scheduler import Slurm
from orchestrator.storage.event_log import Entry

SCHEDULERS: dict[str, type[Scheduler]] = {kind.name: kind for kind in (Local, InProcess, Slurm)}


def chosen(config: Config) -> type[Scheduler]:
    """The scheduler that `launcher.kind` names. Raises `UserError` where none has that name."""
    kind = config.launcher.kind
    if kind not in SCHEDULERS:
        raise UserError(
            f"launcher.kind={kind} is not a scheduler{nearest(kind, SCHEDULERS)}: use {' or '.join(SCHEDULERS)}."
        )
    return SCHEDULERS[kind]


def of_this_process(experiment_dir: Path) -> Scheduler:
    """The scheduler that started this process; `InProcess` where a user did."""
    return SCHEDULERS.get(os.environ.get(STARTED_BY, ""), InProcess)(experiment_dir)


def of_entry(entry: Entry, experiment_dir: Path) -> Scheduler:
    """The scheduler of the job in an entry of the event log."""
    try:
        return SCHEDULERS[entry.scheduler](experiment_dir)
    except KeyError:
        raise UserError(
            f"{experiment_dir / 'events.jsonl'} has a job of '{entry.scheduler}', which is not a scheduler: "
            f"use the version that wrote it, or one of {', '.join(SCHEDULERS)}."
        ) from None


def log_of(entry: Entry, experiment_dir: Path) -> Path:
    """The file of the stderr of the job in an entry, which a queue or a launcher of this machine started."""
    return SCHEDULERS.get(entry.scheduler, Local)(experiment_dir).log_of(entry.job)


def is_own_line(line: str) -> bool:
    """True for a line of a job's log that a scheduler wrote, and not the job."""
    return any(kind.own_lines.match(line) for kind in SCHEDULERS.values())


def job_states(entries: Collection[Entry], experiment_dir: Path) -> dict[tuple[str, str], JobState]:
    """`Entry.queued_as` → state, of the jobs in the entries that a queue still knows. Raises `NoAnswer`."""
    found: dict[tuple[str, str], JobState] = {}
    for one in {entry.scheduler: entry for entry in entries if entry.scheduler}.values():
        jobs = [entry.job for entry in entries if entry.scheduler == one.scheduler]
        known = of_entry(one, experiment_dir).states(jobs)
        found |= {(one.scheduler, job): state for job, state in known.items()}
    return found
