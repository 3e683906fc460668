"""The retries of a cell whose process died: how many, and after which pause.

A job of a queue runs `python -m orchestrator.jobs.retry` when its cell's process has failed, as no launcher may be left
to notice. It imports little, since it must run where memory was too short for the cell.
"""

from __future__ import annotations

import argparse
import signal
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

from orchestrator.common import command
from orchestrator.common.errors import UserError
from orchestrator.jobs import notices
from orchestrator.schedulers import of_this_process
from orchestrator.schedulers.scheduler import Scheduler, ThisJob
from orchestrator.storage import steps
from orchestrator.storage.event_log import EventLog

LONGEST_DELAY = 600.0  # seconds
NOT_STARTED = -1  # step of the newest checkpoint of a cell without any


def record_crash(events: EventLog, cell: str, reason: str, **which: Any) -> None:
    """Record that an attempt's process ended without finishing or stopping; `which`: more arguments of `append`."""
    events.append(cell, "crashed", reason=reason, saved=newest_checkpoint(events.path.parent / cell), **which)


def newest_checkpoint(cell_dir: Path) -> int:
    """The step of the newest checkpoint, whole or not; `NOT_STARTED` without any."""
    return max(steps.paths_in(cell_dir / "checkpoints"), default=NOT_STARTED)


def pause_or_give_up(events: EventLog, cell: str, retries: int, backoff: float) -> float | None:
    """Seconds to wait before the cell is tried again; None where it is given up, which is recorded.

    It is given up when it has died more than `retries` times after the same checkpoint. The pause begins with `backoff`
    seconds and doubles with every death.
    """
    # counted since it was last given up, stopped or finished: a launch after that is a new try
    recent = takewhile(lambda r: r["state"] not in ("failed", "stopped", "done"), reversed(events.of(cell)))
    deaths = [record for record in recent if record["state"] == "crashed"]
    saved = deaths[0].get("saved") if deaths else None
    alike = list(takewhile(lambda death: death.get("saved") == saved, deaths))
    if len(alike) <= retries:
        return min(LONGEST_DELAY, backoff * 2.0 ** (len(alike) - 1))
    last = alike[0]
    since = "before its first checkpoint" if saved in (None, NOT_STARTED) else f"after its checkpoint of step {saved}"
    times = "" if len(alike) == 1 else f"died {len(alike)} times {since}, most recently: "
    which = {"attempt": last["attempt"], "job": last["job"], "scheduler": last.get("scheduler")}
    notices.fail(events, cell, f"{times}{last['reason']}", **which)
    return None


def after(events: EventLog, scheduler: Scheduler, job: ThisJob, code: int, retries: int, backoff: float) -> None:
    """Requeue this job, whose cell's process ended with exit code `code`, or record the reason against it.

    Does nothing where the scheduler is ending the job by itself, or another run has the cell.
    """
    cell = None if scheduler.ending(job) else events.cell_of(job.id)
    if cell is None:
        return
    entry = events.last()[cell]
    if entry.job != job.id or entry.restart > job.restart:
        return
    which: dict[str, Any] = {"attempt": entry.attempt, "job": job.id, "scheduler": scheduler.name}
    if entry.restart == job.restart and entry.state not in ("submitted", "running"):
        if entry.state != "crashed":
            return  # the process has recorded how it ended
    elif code - 128 in (signal.SIGUSR2, signal.SIGTERM):  # as it started, before it could record that
        reason = f"by {_exit_reason(code)}, as it started"
        events.append(cell, "preempted", reason=reason, restart=job.restart, **which)
        scheduler.requeue(job.id)
        return
    else:
        reason = f"its process ended unexpectedly ({_exit_reason(code)})"
        record_crash(events, cell, reason, restart=job.restart, **which)
    pause = pause_or_give_up(events, cell, retries, backoff)
    if pause is not None and not scheduler.requeue(job.id, pause):
        notices.fail(events, cell, f"{scheduler.title} did not start it again", **which)


def _exit_reason(code: int) -> str:
    """The name of the signal in an exit code of the shell, or the code itself."""
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 where the event log cannot be read or written."""
    parser = command.parser("orchestrator.jobs.retry", __doc__)
    parser.add_argument("directory", type=Path, help="the experiment's directory")
    parser.add_argument("code", type=int, help="the exit code of the cell's process")
    parser.add_argument("--retries", type=int, default=2)
    parser.add_argument("--backoff", type=float, default=10.0, help="seconds")
    return command.run(parser, _retry, arguments)


def _retry(options: argparse.Namespace) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):  # the scheduler sends them as it requeues this process's job
        signal.signal(number, signal.SIG_IGN)
    scheduler = of_this_process(options.directory)
    job = scheduler.this_job()
    if job is None or not scheduler.queues:
        raise UserError("This process is not a job of a queue: run `status --resume` to start a cell again.")
    after(EventLog(options.directory), scheduler, job, options.code, options.retries, options.backoff)


if __name__ == "__main__":
    sys.exit(main())
