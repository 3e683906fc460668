"""What a cell's state is called, from what its event log says and what can be seen of it."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.schedulers.slurm import Job
from orchestrator.storage.event_log import OPEN, Entry


@dataclass(frozen=True)
class Sight:
    """What can be seen of a cell beside what the event log says of it."""

    held: bool = False  # its process lives, as far as can be told
    stale: bool = False  # but has not said so for too long
    launching: bool = False  # the experiment's launcher runs
    job: Job | None = None  # its scheduler's, where there is one that knows it
    asked: bool = True  # whether the scheduler could be asked


def state_of(entry: Entry | None, sight: Sight) -> str:
    """The event log's word where it is final; otherwise what claim, launcher and scheduler say of it."""
    if entry is None:
        return "next"
    if not is_open(entry):
        return entry.state
    if entry.scheduler and sight.job is not None and sight.job.is_suspended:
        return "suspended"  # frozen, it cannot beat
    if sight.held or (entry.scheduler and sight.stale and entry.state == "running"):
        forgotten = sight.stale or (sight.job is not None and not sight.job.is_running)
        return "zombie" if forgotten else "running"
    if not entry.scheduler:
        return "queued" if entry.state in ("submitted", "crashed") and sight.launching else "lost"
    if sight.job is None:
        return "lost" if sight.asked or entry.state == "running" else "queued"
    if sight.job.has_ended:
        return "stopped" if sight.job.state.startswith("CANCELLED") else "lost"
    if entry.state == "running" and sight.job.state == "RUNNING":
        return "running"  # its process has just died, and the job has still to say so
    return "preempted" if entry.state in ("preempted", "running") else "queued"


def is_open(entry: Entry | None) -> bool:
    """Whether another word on the cell must follow."""
    return entry is not None and entry.state in OPEN
