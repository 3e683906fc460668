"""The states in which cells are shown: those of the event log, and what the evidence makes of an open one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.schedulers.scheduler import JobState, Phase
from orchestrator.storage.cell_states import STATES
from orchestrator.storage.event_log import Entry


class Shown(NamedTuple):
    """One state of the table below."""

    style: str  # of rich
    is_live: bool  # the cell may go on by itself
    is_bad: bool  # the user must act
    meaning: str


SHOWN = {  # in the order of the counts and, in a cropped view, of the cells
    "failed": Shown("bold red", False, True, STATES["failed"].meaning),
    "lost": Shown("red", False, True, "its process is gone, and did not record its end"),
    "zombie": Shown("red", True, True, "its process should be gone, or its heartbeat is overdue"),
    "missing": Shown("red", False, True, "its directory is gone"),
    "running": Shown("cyan", True, False, STATES["running"].meaning),
    "suspended": Shown("yellow", True, False, "its scheduler has frozen its processes, and will resume them"),
    "preempted": Shown("yellow", True, False, STATES["preempted"].meaning),
    "stopped": Shown("yellow", False, False, STATES["stopped"].meaning),
    "queued": Shown("dim", True, False, "its process or job waits to begin, perhaps again"),
    "next": Shown("dim", False, False, "it was never launched"),
    "done": Shown("green", False, False, STATES["done"].meaning),
}


@dataclass(frozen=True)
class Evidence:
    """The facts about a cell that its newest event does not hold."""

    held: bool = False  # its process lives, as far as this machine can tell
    stale: bool = False  # its heartbeat is overdue
    launching: bool = False  # the experiment's launcher runs
    job: JobState | None = None  # None where no queue has a job of the cell
    answered: bool = True  # the queue answered, or none was to be asked


def state_of(entry: Entry | None, evidence: Evidence) -> str:
    """The key of `SHOWN` for a cell: its last event's state unless that is open, else what the evidence says."""
    if entry is None:
        return "next"
    if not entry.is_open:
        return entry.state
    job = evidence.job
    if job is not None and job.phase == Phase.suspended:
        return "suspended"  # frozen, it sends no heartbeat
    if evidence.held or (entry.scheduler and evidence.stale and entry.state == "running"):
        return "zombie" if evidence.stale or (job is not None and not job.has_processes) else "running"
    if not entry.scheduler:
        return "queued" if entry.state in ("submitted", "crashed") and evidence.launching else "lost"
    if job is None:
        return "lost" if evidence.answered or entry.state == "running" else "queued"
    if job.has_ended:
        return "stopped" if job.phase == Phase.cancelled else "lost"
    if entry.state == "running" and job.phase == Phase.running:
        return "running"  # its process has just died, and the job has still to record that
    return "preempted" if entry.state in ("preempted", "running") else "queued"


def reason_of_loss(entry: Entry, job: JobState | None) -> str:
    """The reason why the process of a lost cell is gone, as far as is known."""
    if entry.state == "submitted" and job is not None:
        return f"its job ended ({job.word}) before the cell began, perhaps in launcher.{entry.scheduler}.setup"
    return entry.reason if entry.state == "crashed" else "its process is gone (killed, or its machine is down)"
