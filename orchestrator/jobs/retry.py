"""Whether a cell whose process died is tried again, and after how long.

`python -m orchestrator.jobs.retry` is what a job on a cluster runs when its cell's process has ended badly: nobody else
need be there to see it.
"""

from __future__ import annotations

import argparse
import signal
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.schedulers import slurm
from orchestrator.schedulers.slurm import ThisJob
from orchestrator.storage import steps
from orchestrator.storage.event_log import EventLog

LONGEST_DELAY = 600.0  # seconds
NOT_STARTED = -1  # the checkpoint of a cell that has none


def died(events: EventLog, cell: str, reason: str, **of: Any) -> None:
    """Record that an attempt's process ended and neither finished nor stopped; `of`: which, as for `append`."""
    events.append(cell, "crashed", reason=reason, saved=newest_checkpoint(events.path.parent / cell), **of)


def newest_checkpoint(cell_dir: Path) -> int:
    """The step of the newest checkpoint, whole or not; `NOT_STARTED` without any."""
    return max(steps.paths_in(cell_dir / "checkpoints"), default=NOT_STARTED)


def pause_or_give_up(events: EventLog, cell: str, retries: int, backoff: float) -> float | None:
    """Seconds to wait before the cell is tried again; null where it is not, which the event log then says.

    It is given up when it has died more than `retries` times since the same checkpoint: whatever kills it will do so
    again. From one death to the next the pause doubles, beginning with `backoff` seconds.
    """
    # since it was last given up, stopped or finished: whoever starts it then means it
    story = takewhile(lambda r: r["state"] not in ("failed", "stopped", "done"), reversed(events.of(cell)))
    deaths = [record for record in story if record["state"] == "crashed"]
    saved = deaths[0].get("saved") if deaths else None
    here = list(takewhile(lambda death: death.get("saved") == saved, deaths))
    if len(here) <= retries:
        return min(LONGEST_DELAY, backoff * 2.0 ** (len(here) - 1))
    last = here[0]
    times = "" if len(here) == 1 else f"died {len(here)} times {_since(saved)}, most recently: "
    which = {"attempt": last["attempt"], "job": last["job"], "scheduler": last.get("scheduler")}
    events.append(cell, "failed", reason=f"{times}{last['reason']}", **which)
    return None


def _since(saved: int | None) -> str:
    return "before its first checkpoint" if saved in (None, NOT_STARTED) else f"after its checkpoint of step {saved}"


def after(events: EventLog, here: ThisJob, code: int, retries: int, backoff: float) -> None:
    """What to do about this run of a job of the cluster, which ended with exit code `code`: nothing, or another one."""
    if slurm.ending(here):
        return  # the scheduler's own doing
    cell = events.cell_of(here.id)
    if cell is None:
        return
    entry = events.last()[cell]
    if entry.job != here.id or entry.restart > here.restart:
        return  # another run has the cell
    if entry.restart == here.restart and entry.state not in ("submitted", "running"):
        last = entry.state  # its own word on how it ended
    elif code - 128 in (signal.SIGUSR2, signal.SIGTERM):  # taken off before it could say so, as it started
        which: dict[str, Any] = {"job": here.id, "restart": here.restart, "scheduler": slurm.SLURM}
        events.append(cell, "preempted", attempt=entry.attempt, reason=f"by {_said(code)}, as it started", **which)
        slurm.requeue(here.id)
        return
    else:
        reason = f"its process ended without a word ({_said(code)})"
        died(events, cell, reason, attempt=entry.attempt, job=here.id, scheduler=slurm.SLURM, restart=here.restart)
        last = "crashed"
    if last != "crashed":
        return
    pause = pause_or_give_up(events, cell, retries, backoff)
    if pause is not None and not slurm.requeue(here.id, pause):
        which = {"attempt": entry.attempt, "job": here.id, "scheduler": slurm.SLURM}
        events.append(cell, "failed", reason="Slurm did not start it again", **which)


def _said(code: int) -> str:
    """An exit code of the shell, in words."""
    if code <= 128:
        return f"exit code {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 2 where the event log cannot be read or written."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.jobs.retry", description=__doc__)
    parser.add_argument("directory", type=Path, help="the experiment's directory")
    parser.add_argument("code", type=int, help="its exit code")
    parser.add_argument("--retries", type=int, default=2)
    parser.add_argument("--backoff", type=float, default=10.0, help="seconds")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGUSR2):  # from Slurm, once it was asked to requeue the job this is part of
        signal.signal(number, signal.SIG_IGN)
    here = slurm.this_job()
    if here is None:
        print("This is no job of Slurm: there is nothing to start again.", file=sys.stderr)
        return 2
    try:
        after(EventLog(options.directory), here, options.code, options.retries, options.backoff)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
