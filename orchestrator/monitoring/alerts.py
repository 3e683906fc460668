"""Alerts on an experiment's cells: one function for each kind, and one table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from orchestrator.common.formatting import counted
from orchestrator.experiments.due import Due
from orchestrator.monitoring.cells import CellStatus

SEVERITIES = ("critical", "warn", "note")  # worst first
STALE_INTERVALS = 10  # times the longest interval between two records: a running cell that is silent for longer
STALE_SECONDS = 60.0  # and for longer than this is stale
BEHIND = 2  # such checkpoints make an alert while the cell trains; one is always being read
CORRUPT = (".corrupt-", ".damaged-")  # in the names of those set aside; the latter in older cells


@dataclass(frozen=True)
class Alert:
    """One sentence on one cell; equal to the earlier alert where nothing has changed."""

    cell: str
    severity: str  # one of `SEVERITIES`
    text: str


Found = Iterator[tuple[str, str]]  # severity, text
Rule = Callable[[CellStatus], Found]


def alerts(status: CellStatus) -> list[Alert]:
    """The alerts of a cell, worst first."""
    found = [Alert(status.cell, *each) for rule in RULES for each in rule(status)]
    return sorted(found, key=lambda alert: SEVERITIES.index(alert.severity))


def ended_badly(s: CellStatus) -> Found:
    """The reason why a cell needs its user; for any other cell, the reason of its last event."""
    log = "".join(f"\n  {line}" for line in s.log)
    if s.state == "failed":
        cure = "; --resume starts it again" if s.deaths else ""  # any other reason names its own
        yield "critical", f"failed: {s.reason or 'no reason was recorded'}{cure}{log}"
    elif s.state == "lost":
        yield (
            "critical",
            f"lost: {s.reason}. To resume it, repeat the experiment's command, or status --resume.{log}",
        )
    elif s.state == "missing":
        yield "critical", "its directory is gone: the experiment's command trains it again."
    elif s.state == "zombie":
        what = f"its process (attempt {s.attempt}, job {s.job}) should be gone, or its heartbeat is overdue"
        yield "critical", f"a zombie: {what}; --resume all cancels it and resumes from its newest checkpoint."
    elif s.state == "suspended":
        yield "note", f"suspended: its job {s.job} is frozen until its scheduler, or an operator, lets it go on."
    elif s.reason:
        yield "note", s.reason


def interrupted(s: CellStatus) -> Found:
    """The number of times that a cell was preempted, and that it died."""
    counts = {"preempted": s.preempted, "died": s.deaths}
    times = [f"{verb} {n} times in all" if n > 1 else f"{verb} once" for verb, n in counts.items() if n]
    if times:
        yield "note", " and ".join(times) + (f"; this is attempt {s.attempt}." if s.state == "running" else ".")


def waiting(s: CellStatus) -> Found:
    """The reason why a job waits, or that its queue does not answer."""
    if s.waits:
        yield "note", f"{s.waits}."


def pathology(s: CellStatus) -> Found:
    """Tensors that are out of proportion, or hold nothing of use, in the newest reading (SCIENCE §5)."""
    if s.reading and s.reading.findings:
        worst, *others = s.reading.findings
        more = f", and {counted(len(others), 'tensor')} more" if others else ""
        severity = "critical" if worst.severity == "critical" else "warn"
        text = f"{worst.text} at step {s.reading.step}{more}."
        yield severity, text


def stale(s: CellStatus) -> Found:
    """A running cell that has written nothing for many times the interval between its records."""
    if s.state != "running" or s.written is None or s.interval is None or s.step >= s.steps:
        return
    if s.seen - s.written > max(STALE_SECONDS, STALE_INTERVALS * s.interval):
        since = datetime.fromtimestamp(s.written).astimezone().isoformat(" ", "seconds")
        yield "warn", f"has written nothing since {since}; its records were {s.interval:.3g} s apart at most."


def set_aside(s: CellStatus) -> Found:
    """Checkpoints that were set aside: corrupt, or of steps that were trained again."""
    for reasons, said in ((CORRUPT, "corrupt"), ((".replaced-",), "its steps were trained again")):
        if names := [name for name in s.aside if any(reason in name for reason in reasons)]:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield "note", f"{counted(len(names), 'checkpoint')} set aside ({said}): checkpoints/{names[0]}{others}."


def unread(s: CellStatus) -> Found:
    """Checkpoints that are due and unread, because readings lag behind or failed."""
    if s.plan is not None:
        yield from _left(s, s.saved - s.read, s.plan.readings, "not read yet", "reads")


def not_intervened_on(s: CellStatus) -> Found:
    """Checkpoints on which interventions are due and missing, because these lag behind or failed."""
    if s.plan is not None and s.plan.interventions is not None:
        yield from _left(s, s.saved - s.intervened, s.plan.interventions, "not intervened on yet", "intervenes on")


def _left(s: CellStatus, steps: Collection[int], plan: Due, what: str, does: str) -> Found:
    """Warn of the `steps` that are due, once many are or the cell no longer runs."""
    due = sorted(step for step in steps if step in plan)
    if len(due) >= BEHIND or (due and s.state not in ("running", "queued", "preempted")):
        which = f"step {due[0]}" if len(due) == 1 else f"steps {due[0]} to {due[-1]}"
        cure = "" if s.state == "running" else f"; the experiment's command {does} what is left"
        yield "warn", f"{counted(len(due), 'checkpoint')} {what} ({which}){cure}."


def unreadable(s: CellStatus) -> Found:
    """Files of the cell that cannot be read."""
    for sentence in s.broken:
        yield "warn", sentence


RULES: list[Rule] = [
    ended_badly,
    interrupted,
    waiting,
    pathology,
    stale,
    set_aside,
    unread,
    not_intervened_on,
    unreadable,
]
