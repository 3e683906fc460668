"""One cell as a job: `python -m orchestrator.job CELL_DIR` runs or resumes it in this process."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import submitit
from submitit.core.utils import DelayedSubmission

from orchestrator.common.environment import environment
from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.config.schema import Config
from orchestrator.experiments.readings import Readings
from orchestrator.jobs import retry
from orchestrator.jobs.readers import reader_for
from orchestrator.schedulers import slurm
from orchestrator.storage import checkpoint, lease, metrics_log
from orchestrator.storage.event_log import EventLog
from orchestrator.training import distributed, rendezvous
from orchestrator.training.distributed import World
from orchestrator.training.loop import StopSignal, train_cell
from orchestrator.training.trainer import Trainer

ASK_SECONDS = 30.0  # between two questions to Slurm
SLACK_SECONDS = 60.0  # by which Slurm may warn of a time limit early
FAILED = {"failed", "crashed"}
REQUEUED = 128 + signal.SIGTERM  # exit code of a process that Slurm will start again


@dataclass(frozen=True)
class CellJob:
    """The body of a job: run or resume one cell and leave its outcome in the event log.

    `gpu` is the one device it may see, or one for each rank, as CUDA_VISIBLE_DEVICES names them.
    """

    cell_dir: str
    gpu: str | None = None

    def __call__(self) -> str:
        """The state of `run_job`; on a cluster a cell that failed ends its process with a code that says so."""
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        state = run_job(Path(self.cell_dir))
        code = 2 if state in FAILED and slurm.this_job() and rendezvous.is_rank_0() else 0
        if rendezvous.this_rank() is not None:
            leave_at_once(code)
        if code:
            sys.exit(code)
        return state

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts again where a signal comes before `run_job` takes the signals over: the same."""
        return DelayedSubmission(self)


def run_job(path: Path) -> str:
    """Train or resume the cell in `path` and leave its outcome in the event log; return the state.

    Waits for a process that may still be running the cell (one that outlived its launcher), then finds the cell
    finished or goes on from where that process left it. Never raises: a failed cell is a recorded state.
    """
    here = slurm.this_job() or slurm.ThisJob(_process(), 0)
    try:
        with StopSignal() as stop, rendezvous.join() as world:
            return _lead(path, stop, here, world) if world.is_rank_0 else _follow(path, stop, world)
    except lease.Superseded as end:
        print(end, file=sys.stderr)
        return "superseded"
    except distributed.RankError as error:
        print(error, file=sys.stderr)
        return "crashed"
    except UserError as error:  # not even the event log could be written
        print(error, file=sys.stderr)
        return "failed"


def _lead(path: Path, stop: StopSignal, here: slurm.ThisJob, world: World) -> str:
    """The first rank's part: everything on disk. It tells the others what there is to do."""

    def give_up() -> bool:
        world.broadcast("wait")
        return stop.received is not None

    before = _attempts_before(path)
    with lease.hold(path, here.id, here.restart, above=before, is_gone=_is_gone(path), give_up=give_up) as held:
        # without it, the process that holds the cell goes on
        state = "stopped" if held is None else "done" if is_finished(path) else "running"
        world.broadcast(state)
        if held is None and slurm.this_job() and not slurm.ending(here) and slurm.requeue(here.id):
            leave_at_once(REQUEUED)  # it had not begun; Slurm starts it again
        return state if held is None or state == "done" else _run(path, stop, held, here, world)


def _follow(path: Path, stop: StopSignal, world: World) -> str:
    """Another rank's part: to train along. What comes of it is the first one's to record."""
    while (state := world.broadcast()) == "wait":
        pass
    if state != "running":
        return state
    try:
        return "done" if train_cell(path, stop, reader_for, world=world) else "stopped"
    except UserError as error:
        print(error, file=sys.stderr)
        return "failed"
    except Exception:
        traceback.print_exc()
        return "crashed"


def _run(path: Path, stop: StopSignal, held: lease.Lease, here: slurm.ThisJob, world: World) -> str:
    cell, events = f"{path.parent.name}/{path.name}", EventLog(path.parents[1])
    whose: dict[str, Any] = {"attempt": held.number, "job": here.id}
    if slurm.this_job():
        whose |= {"scheduler": slurm.SLURM, "restart": here.restart}
    with held.writing():
        _record_silent_end_of(path, held.number)
        if given_up := _given_up(path, events, here):
            return given_up

    def note(state: str, reason: str = "", **more: Any) -> str:
        with held.writing():
            events.append(cell, state, reason=reason, **whose, **more)
        return state

    def started(trainer: Trainer, warnings: list[str]) -> None:
        reason = " ".join([*warnings, f"resumed at step {trainer.step}" if trainer.step else ""]).strip()
        several = {"ranks": world.size} if world.size > 1 else {}
        note("running", reason, environment=environment(trainer.compute.device) | several)
        if slurm.this_job():
            stop.on_saved = partial(leave, trainer, trainer.step)

    def leave(trainer: Trainer, since: int) -> None:
        """Give the job back to its scheduler, which starts it again, unless it is ending it by itself."""
        ending, left = slurm.ending(here), f"saved and left at {stop.received}"
        warned = stop.received == signal.SIGUSR2.name  # of a time limit, or a preemption
        limit = trainer.config.launcher.slurm.warning_seconds + SLACK_SECONDS
        if ending == slurm.CANCELLED and not warned:
            note("stopped", f"cancelled: {left}")
        elif warned and ending is None and trainer.step == since and slurm.seconds_left(here.id) < limit:
            reason = "its time was up before its first step: raise launcher.timeout_hours"
            note("crashed", reason, saved=retry.newest_checkpoint(path))  # so that it is not tried for ever
        else:
            note("preempted", left)
            if ending is None and not slurm.requeue(here.id):
                note("stopped", "Slurm did not take it back")
        held.release()
        leave_at_once(REQUEUED)

    try:
        finished = train_cell(path, stop, reader_for, held.number, started, held.writing, world)
    except lease.Superseded:
        raise
    except UserError as error:
        return note("failed", str(error))
    except Exception as error:
        traceback.print_exc()
        return note("crashed", f"{type(error).__name__}: {error}", saved=retry.newest_checkpoint(path))
    return note("done" if finished else "stopped")


def _given_up(path: Path, events: EventLog, here: slurm.ThisJob) -> str | None:
    """`failed`, recorded, where Slurm starts a job again, as after a node's death, whose cell has died too often."""
    cell, limits = f"{path.parent.name}/{path.name}", _config_of(path).launcher
    entry = events.last().get(cell)
    if entry is None or entry.state != "crashed" or entry.job != here.id or entry.restart >= here.restart:
        return None
    return "failed" if retry.pause_or_give_up(events, cell, limits.retries, limits.backoff_seconds) is None else None


def _record_silent_end_of(path: Path, attempt: int) -> None:
    """Record that the attempt before `attempt` died, where it was running and nobody has said so yet."""
    cell, events = f"{path.parent.name}/{path.name}", EventLog(path.parents[1])
    before = events.last().get(cell)
    if before is not None and before.state == "running" and before.attempt < attempt:
        reason = "its process, or its machine, ended without a word"
        which = {"job": before.job, "scheduler": before.scheduler, "restart": before.restart}
        retry.died(events, cell, reason, attempt=before.attempt, **which)


def _attempts_before(path: Path) -> int:
    """The highest number of an attempt that anything tells of, were its claim deleted."""
    record: metrics_log.Record | None = None
    with suppress(UserError):  # a broken line, of which the run will say what it is
        record = metrics_log.newest(path / "metrics.jsonl")
    began = (r for r in EventLog(path.parents[1]).of(f"{path.parent.name}/{path.name}") if r["state"] == "running")
    return max((r["attempt"] for r in (record or {}, *began) if isinstance(r.get("attempt"), int)), default=0)


def _is_gone(path: Path) -> Callable[[lease.Attempt], bool]:
    """Whether Slurm says that a claim's job has ended, asked now and then: its process may hang all the same."""
    events, asked = EventLog(path.parents[1]), dict[int, float]()

    def is_gone(claim: lease.Attempt) -> bool:
        now = time.monotonic()
        if not slurm.this_job() or now < asked.get(claim.number, 0.0):
            return False
        asked[claim.number] = now + ASK_SECONDS
        theirs = {record["job"] for record in events.of(f"{path.parent.name}/{path.name}") if record.get("scheduler")}
        known = slurm.jobs([claim.job], path.parents[1], events.owner()) if claim.job in theirs else None
        return known is not None and (claim.job not in known or known[claim.job].has_ended)

    return is_gone


def is_finished(cell_dir: Path) -> bool:
    """Whether the event log calls it done, and its last checkpoint, its last record and every due reading are there."""
    entry = EventLog(cell_dir.parents[1]).last().get(f"{cell_dir.parent.name}/{cell_dir.name}")
    if entry is None or entry.state != "done":
        return False
    config = _config_of(cell_dir)
    last, record = config.train.steps, metrics_log.newest(cell_dir / "metrics.jsonl")
    return (
        checkpoint.damage(checkpoint.path_of(cell_dir / "checkpoints", last), digests=False) is None
        and record is not None
        and record["step"] == last
        and not Readings(cell_dir, config).unread()
    )


@cache
def _config_of(cell_dir: Path) -> Config:
    """Read once: it does not change while the cell has its name."""
    return load.from_file(cell_dir / "config.yaml")


def _process() -> str:
    """What the launcher that started this process calls it; the process, where there is none."""
    try:
        return submitit.JobEnvironment().job_id
    except RuntimeError:
        return str(os.getpid())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one cell here; the exit code is 0 when it is done, 130 when a signal stopped it, 2 when it failed."""
    paths = sys.argv[1:] if arguments is None else arguments
    if len(paths) != 1:
        print("usage: python -m orchestrator.job CELL_DIR (outputs/<name>/<arm>/seed=<k>)", file=sys.stderr)
        return 2
    path = Path(paths[0]).resolve()
    if not (path / "config.yaml").is_file():
        if rendezvous.is_rank_0():
            print(f"{paths[0]} has no config.yaml: launch its experiment first, which makes it.", file=sys.stderr)
        return 2
    if is_finished(path) and rendezvous.is_rank_0():
        print(f"{paths[0]} is done already: nothing is left to do.")
    state = run_job(path)
    if state in FAILED and rendezvous.is_rank_0():
        last = EventLog(path.parents[1]).last().get(f"{path.parent.name}/{path.name}")
        print(last.reason if last else "failed", file=sys.stderr)
    return {"done": 0, "stopped": 130}.get(state, 2)


def leave_at_once(code: int) -> NoReturn:
    """End a rank that has said all: as torch takes its threads down, it might still abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
