"""The worker: the process that runs one cell, `python -m orchestrator.job CELL_DIR`."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.common.environment import environment
from orchestrator.common.errors import INTERRUPTED, UserError
from orchestrator.config import load
from orchestrator.config.schema import Config
from orchestrator.experiments import budget
from orchestrator.experiments.readings import Readings
from orchestrator.jobs import notices, retry, trained
from orchestrator.jobs.readers import reader_for
from orchestrator.schedulers import of_this_process
from orchestrator.schedulers.scheduler import Ending, NoAnswer, ThisJob, usable_cores
from orchestrator.storage import lease, metrics_log, steps
from orchestrator.storage.event_log import EventLog
from orchestrator.training import distributed, rendezvous
from orchestrator.training.distributed import World
from orchestrator.training.loop import StopSignal, train_cell
from orchestrator.training.trainer import Trainer

ASK_SECONDS = 30.0  # between two queries to the scheduler about one attempt
REQUEUED = 128 + signal.SIGTERM  # exit code of a process whose job is started again
EXIT_CODES = {"done": 0, "stopped": INTERRUPTED}  # any other state: 2


def run_job(path: Path) -> str:
    """Train or resume the cell in `path`, record the state in which it ends, and return that state.

    Waits for a process that still runs the cell, such as one that outlived its launcher, then resumes from where that
    one left it. Raises nothing: a failed cell is a recorded state.
    """
    job = of_this_process(path.parents[1]).this_job() or ThisJob(str(os.getpid()))
    try:
        with StopSignal() as stop, rendezvous.join(job.restart) as world:
            return Worker(path, job, stop, world).run() if world.is_rank_0 else _follow(path, stop, world)
    except lease.Superseded as end:
        print(end, file=sys.stderr)
        return "superseded"
    except distributed.RankError as error:
        print(error, file=sys.stderr)
        return "crashed"
    except UserError as error:  # not even the event log could be written
        print(error, file=sys.stderr)
        return "failed"


def _follow(path: Path, stop: StopSignal, world: World) -> str:
    """Train as every rank but rank 0 does; return the state, which rank 0 records."""
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


class Worker:
    """Rank 0 of a cell: takes the cell's lease, trains the cell and records its states in the event log."""

    def __init__(self, path: Path, job: ThisJob, stop: StopSignal, world: World) -> None:
        self.path, self.job, self.stop, self.world = path, job, stop, world
        self.cell, self.events = f"{path.parent.name}/{path.name}", EventLog(path.parents[1])
        self.scheduler = of_this_process(path.parents[1])
        self.asked: dict[int, float] = {}  # attempt → the `time.monotonic` at which to ask the queue again

    def run(self) -> str:
        """Run the cell when no other process does, broadcast the state to the other ranks, and return it."""
        job, world = self.job, self.world

        def give_up() -> bool:
            world.broadcast("wait")
            return self.stop.received is not None

        above, is_gone = self._attempts_before(), self._is_gone
        with lease.hold(self.path, job.id, job.restart, above=above, is_gone=is_gone, give_up=give_up) as held:
            # without the lease, the cell is left to the process that holds it
            state = "stopped" if held is None else "done" if is_finished(self.path) else "running"
            if held and state == "running" and self.scheduler.queues and (reason := self._out_of_budget()):
                with held.writing():
                    self.events.append(self.cell, "stopped", reason=reason, **self._whose(held))
                world.broadcast("stopped")
                return "stopped"
            only_read = state == "running" and trained.needs_no_trainer(self.path, _config_of(self.path))
            world.broadcast("done" if only_read else state)
            if state == "done":
                print(f"{self.path} is done already: nothing is left to do.")
            if held is None and not self.scheduler.ending(job) and self.scheduler.requeue(job.id):
                leave_at_once(REQUEUED)
            return state if held is None or state == "done" else self._train(held, only_read=only_read)

    def _train(self, held: lease.Lease, *, only_read: bool) -> str:
        whose = self._whose(held)
        with held.writing():
            self._record_unrecorded_crash(held.number)
            if self._is_given_up():
                return "failed"

        def record(state: str, reason: str = "", **more: Any) -> str:
            with held.writing():
                self.events.append(self.cell, state, reason=reason, **whose, **more)
            if state == "failed":
                notices.cell_failed(self.events, self.cell, reason)
            return state

        def started(trainer: Trainer, warnings: list[str]) -> None:
            resumed = trainer.step > (trainer.config.branch.step or 0)
            reason = " ".join([*warnings, f"resumed at step {trainer.step}" if resumed else ""]).strip()
            how = {"micro_batch_size": trainer.micro_batch, "ranks": self.world.size}
            record("running", reason, environment=environment(trainer.compute.device, usable_cores()) | how)
            if self.scheduler.queues:
                self.stop.on_saved = partial(self._leave, held, record, trainer, trainer.step)

        try:
            if only_read:
                record("running", "trained already: its checkpoints are read")
                finished = trained.read(self.path, _config_of(self.path), lambda: self.stop.received is not None)
            else:
                finished = train_cell(self.path, self.stop, reader_for, held.number, started, held.writing, self.world)
        except lease.Superseded:
            raise
        except UserError as error:
            return record("failed", str(error))
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            return record("crashed", reason, saved=retry.newest_checkpoint(self.path))
        return record("done") if finished else record("stopped", f"saved at {self.stop.received}")

    def _whose(self, held: lease.Lease) -> dict[str, Any]:
        """The keys that every event of this attempt has."""
        queue = {"scheduler": self.scheduler.name, "restart": self.job.restart} if self.scheduler.queues else {}
        return {"attempt": held.number, "job": self.job.id, **queue}

    def _leave(self, held: lease.Lease, record: Callable[..., str], trainer: Trainer, since: int) -> None:
        """Requeue the job unless its scheduler is ending it by itself; record the state and end the process."""
        scheduler, job, warned = self.scheduler, self.job, self.stop.received == signal.SIGUSR2.name
        ending, left = scheduler.ending(job), f"saved and left at {self.stop.received}"
        if ending == Ending.cancelled and not warned:  # a warning is of a time limit or a preemption
            record("stopped", f"cancelled: {left}")
        elif warned and ending is None and trainer.step == since and scheduler.is_time_up(trainer.config, job.id):
            reason = "its time was up before its first step: raise launcher.timeout_hours"
            record("crashed", reason, saved=retry.newest_checkpoint(self.path))  # and not retried for ever
        else:
            record("preempted", left)
            if ending is None and not scheduler.requeue(job.id):
                record("stopped", f"{scheduler.title} did not take it back")
        held.release()
        leave_at_once(REQUEUED)

    def _is_given_up(self) -> bool:
        """True, and recorded, for a cell that died too often and whose job the queue starts again by itself."""
        entry, limits = self.events.last().get(self.cell), _config_of(self.path).launcher
        if entry is None or entry.state != "crashed" or entry.job != self.job.id or entry.restart >= self.job.restart:
            return False
        return retry.pause_or_give_up(self.events, self.cell, limits.retries, limits.backoff_seconds) is None

    def _out_of_budget(self) -> str | None:
        """One sentence where the budget has no room for the cell; a launcher that stays asks before it starts one."""
        return budget.refusal(self.path.parents[1], _config_of(self.path).budget, [self.cell])

    def _record_unrecorded_crash(self, attempt: int) -> None:
        """Record that the attempt before `attempt` died, where the event log has it as running."""
        before = self.events.last().get(self.cell)
        if before is not None and before.state == "running" and before.attempt < attempt:
            reason = "its process, or its machine, ended unexpectedly"
            which = {"job": before.job, "scheduler": before.scheduler, "restart": before.restart}
            retry.record_crash(self.events, self.cell, reason, attempt=before.attempt, **which)

    def _attempts_before(self) -> int:
        """The highest attempt number in the cell's logs, in case the files of attempts were deleted."""
        record: metrics_log.Record | None = None
        with suppress(UserError):  # a broken line, which the run will report
            record = metrics_log.newest(self.path / "metrics.jsonl")
        began = (r for r in self.events.of(self.cell) if r["state"] == "running")
        return max((r["attempt"] for r in (record or {}, *began) if isinstance(r.get("attempt"), int)), default=0)

    def _is_gone(self, attempt: lease.Attempt) -> bool:
        """True where the queue reports the job of another attempt as ended, though its process may hang."""
        now = time.monotonic()
        if not self.scheduler.queues or now < self.asked.get(attempt.number, 0.0):
            return False
        self.asked[attempt.number] = now + ASK_SECONDS
        if attempt.job in {record["job"] for record in self.events.of(self.cell) if record.get("scheduler")}:
            with suppress(NoAnswer):
                state = self.scheduler.states([attempt.job]).get(attempt.job)
                return state is None or state.has_ended
        return False


def is_finished(cell_dir: Path) -> bool:
    """True where the cell is done, and its test loss, its last reading and all that is due of its checkpoints exist.

    Its checkpoints themselves may be gone: they were deleted to free the disk.
    """
    entry = EventLog(cell_dir.parents[1]).last().get(f"{cell_dir.parent.name}/{cell_dir.name}")
    if entry is None or entry.state != "done" or not (cell_dir / "config.yaml").is_file():  # deleted, to train it again
        return False
    readings = Readings(cell_dir, _config_of(cell_dir))
    last = readings.config.train.steps
    return (
        metrics_log.trained_to(cell_dir / "metrics.jsonl") == last
        and steps.reading_of(cell_dir, last).is_file()
        and not readings.wanted()
    )


def _config_of(cell_dir: Path) -> Config:
    """The cell's configuration, read again where a launch has changed how the cell is run."""
    path = cell_dir / "config.yaml"
    return _config_in(path, path.stat().st_mtime_ns)


@cache
def _config_in(path: Path, written: int) -> Config:
    return load.from_file(path)


def main(cell: str) -> int:
    """Run one cell; return 0 where it is done, 130 where a signal stopped it, 2 where it failed.

    In a queue, which takes any code but 0 for a death, only rank 0 of a failed cell returns one.
    """
    path = Path(cell).resolve()
    if not (path / "config.yaml").is_file():
        raise UserError(f"{cell} has no config.yaml: launch its experiment first, which writes it.")
    state, scheduler = run_job(path), of_this_process(path.parents[1])
    failed = state in ("failed", "crashed") and rendezvous.is_rank_0()
    if failed and scheduler.this_job() is None:  # by hand; a launcher reads the event log
        last = EventLog(path.parents[1]).last().get(f"{path.parent.name}/{path.name}")
        print(last.reason if last else "failed", file=sys.stderr)
    if scheduler.queues:
        return 2 if failed else 0
    return EXIT_CODES.get(state, 2)


def leave_at_once(code: int) -> NoReturn:
    """End the process without unloading torch, whose threads might abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
