"""A cell's readings: its checkpoints, each read by forensics at most once, beside training.

`python -m orchestrator.jobs.readings CELL` reads what a run left unread; `--watch` goes on while the cell is training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import signal
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from submitit.core.utils import DelayedSubmission

from orchestrator.common.errors import UserError
from orchestrator.config import schema
from orchestrator.config.schema import Config, LauncherKind, Where
from orchestrator.forensics.analyze import DEFINITIONS, analyze
from orchestrator.schedulers import slurm, submission
from orchestrator.storage import checkpoint, lease, locks
from orchestrator.storage.files import write_whole

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 3600.0  # with another process that reads; longer than a reading takes
JOIN_SECONDS = 2.0  # that a cell which has ended gives a submission on its way

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """What a reading is a reading of, and by which definitions: as long as both are the same, it stands."""

    checkpoint: str  # sha256 of its manifest.json, which holds the sha256 of everything else
    definitions: int  # version of SCIENCE's definitions


def key(path: Path) -> Key:
    """The key under which a reading of the checkpoint at `path` is filed now. Raises `UserError` for half a one."""
    try:
        manifest = (path / "manifest.json").read_bytes()
    except OSError as error:
        raise UserError(f"{path} is no whole checkpoint ({error}): rename it, and the run does without it.") from error
    return Key(hashlib.sha256(manifest).hexdigest(), DEFINITIONS)


@dataclass(frozen=True)
class Readings:
    """The readings of one cell, those on disk and those to come. Any number of processes may read at once."""

    cell_dir: Path
    config: Config

    def path_of(self, path: Path) -> Path:
        """Where the reading of the checkpoint at `path` lies."""
        return self.cell_dir / "forensics" / f"{path.name}.json"

    def is_unread(self, path: Path) -> bool:
        """Whether the checkpoint at `path` is due for a reading (every so many steps, and the last) and has none."""
        step = checkpoint.step_of(path)
        due = step % self.config.forensics.every == 0 or step == self.config.train.steps
        return due and not self._is_read(path)

    def unread(self) -> list[Path]:
        """The saved checkpoints that are still to be read, by ascending step."""
        return [path for path in checkpoint.saved(self.cell_dir / "checkpoints") if self.is_unread(path)]

    def settled(self) -> list[Path]:
        """The readings, by ascending step, that come before everything unread: none will be put between or replaced."""
        horizon = min((checkpoint.step_of(path) for path in self.unread()), default=math.inf)
        steps = {int(path.stem.removeprefix("step_")): path for path in self.on_disk()}
        return [steps[step] for step in sorted(steps) if step < horizon]

    def on_disk(self) -> set[Path]:
        """Every reading that is there, those of deleted checkpoints included."""
        return set((self.cell_dir / "forensics").glob("step_*.json"))

    def read(self, path: Path) -> bool:
        """Read the checkpoint at `path`, unless it has been; whether it was done here.

        The first process to come reads; others wait for it, but not for ever: it may be frozen, and a reading that is
        made twice is the same. An outdated reading is kept as `.replaced`. A damaged
        checkpoint is set aside: the run does without this reading, or with the one that was made while it was whole.
        Raises `UserError` where the checkpoint cannot be read or its reading not written.
        """
        latest = time.monotonic() + PATIENCE_SECONDS
        with locks.hold(self.cell_dir / ".readings.lock", give_up=lambda: time.monotonic() > latest):
            if not path.exists() or self._is_read(path):  # another process may have set it aside
                return False
            if reason := checkpoint.damage(path):
                log.warning("%s is damaged (%s): set aside, and not read.", path, reason)
                checkpoint.set_aside(path)
                return False
            now, options = key(path), self.config.forensics
            result = analyze(path, scoring=options.scoring.value, resamples=options.resamples)
            if key(path) != now:  # a resumed run wrote it again meanwhile: this would be a reading of neither
                return False
            target = self.path_of(path)
            if target.exists():
                target.replace(target.with_name(f"{target.name}.replaced"))
            write_whole(target, json.dumps({**result, "key": asdict(now)}, indent=1))
            return True

    def _is_read(self, path: Path) -> bool:
        try:
            target = self.path_of(path)
            return _key_in(target, target.stat().st_mtime_ns) == key(path)
        except (OSError, UserError):
            return False


@lru_cache(maxsize=4096)  # a watcher asks every second, and a reading of many layers is long
def _key_in(reading: Path, written: int) -> Key | None:
    """The key that the reading of that modification time holds; None where it holds none."""
    try:
        return Key(**json.loads(reading.read_text())["key"])
    except (ValueError, KeyError, TypeError):
        return None


class InThread:
    """Reads in one thread of this process. It touches no global state of torch, so that training stays as it is."""

    def __init__(self, readings: Readings) -> None:
        self.readings, self.pool = readings, ThreadPoolExecutor(max_workers=1)
        self.asked: deque[Future[bool]] = deque()

    def add(self, path: Path) -> None:
        """Read the checkpoint at `path` after those before it."""
        self.asked.append(self.pool.submit(self.readings.read, path))

    def take_part(self) -> None:
        """Nothing: nobody else reads for it."""

    def is_busy(self) -> bool:
        """Whether there are readings to come; raise what those made so far raised."""
        while self.asked and self.asked[0].done():
            self.asked.popleft().result()
        return bool(self.asked)

    def close(self) -> None:
        """Finish the reading in progress and leave the rest for another time."""
        self.pool.shutdown(cancel_futures=True)


class Beside:
    """Reads in jobs beside the training process, which takes part only in what is left after its last step.

    A job that died is no reason to stop training: whatever it left is read in the end.
    """

    def __init__(self, readings: Readings) -> None:
        self.readings, self.folder = readings, readings.cell_dir.parents[1] / "jobs"
        self.own: InThread | None = None

    def take_part(self) -> None:
        """Read what is left beside the jobs, so that it ends however they fare."""
        if self.own is None:
            self.own = InThread(self.readings)
            for path in self.readings.unread():
                self.own.add(path)

    def is_busy(self) -> bool:
        """Whether there are readings to come of which this process does a part; raise what those raised."""
        return self.own is not None and self.own.is_busy()

    def close(self) -> None:
        """Finish the reading in progress; the jobs read what is left."""
        if self.own is not None:
            self.own.close()


class InProcess(Beside):
    """One process of this machine, which finds on disk what there is to read and ends when the cell does."""

    def __init__(self, readings: Readings) -> None:
        super().__init__(readings)
        executor = submission.local(readings.config, self.folder)
        (self.job,) = submission.submit(executor, ReadingsJob(str(readings.cell_dir), once=False))

    def add(self, path: Path) -> None:
        """Nothing: the process has seen it."""


class InSlurm(Beside):
    """Jobs of low priority, each of which reads what there is when it begins; at most one of them waits.

    They are submitted in a thread: Slurm may be slow to answer, and no rank is to wait for it.
    """

    def __init__(self, readings: Readings) -> None:
        super().__init__(readings)
        self.job: str | None = None
        self.wanted, self.closing = threading.Event(), False
        self.thread = threading.Thread(target=self._serve, name="readings", daemon=True)  # dies with the cell
        self.thread.start()

    def add(self, path: Path) -> None:
        """Have a job submitted, unless there is one that has not begun. What none reads, the cell does in the end."""
        self.wanted.set()

    def close(self) -> None:
        """See to it that a job that is being submitted at this moment finds its files."""
        super().close()
        self.closing = True
        self.wanted.set()
        self.thread.join(JOIN_SECONDS)

    def _serve(self) -> None:
        while self.wanted.wait() and not self.closing:
            self.wanted.clear()  # before it is submitted: the job may miss what is added from now on
            self._submit()

    def _submit(self) -> None:
        earlier = slurm.jobs([self.job], self.readings.cell_dir.parents[1]) if self.job is not None else None
        if earlier and all(job.is_waiting for job in earlier.values()):
            return
        nice = self.readings.config.launcher.slurm.side_nice
        name = f"{self.readings.config.name}-readings"
        try:
            executor = submission.slurm_beside(self.readings.config, self.folder, nice=nice, job_name=name)
            (job,) = submission.submit(executor, ReadingsJob(str(self.readings.cell_dir.resolve()), once=True))
        except (UserError, RuntimeError, OSError) as error:
            log.warning("Readings of %s are left for the end of the cell: %s", self.readings.cell_dir, error)
            return
        self.job = job.job_id


Reader = InThread | InProcess | InSlurm
READERS: dict[tuple[Where, LauncherKind], type[Reader]] = {
    (Where.inline, LauncherKind.debug): InThread,
    (Where.inline, LauncherKind.local): InThread,
    (Where.inline, LauncherKind.slurm): InThread,
    (Where.job, LauncherKind.debug): InProcess,
    (Where.job, LauncherKind.local): InProcess,
    (Where.job, LauncherKind.slurm): InSlurm,
}


@dataclass(frozen=True)
class ReadingsJob:
    """The body of a job that reads. It may be killed at any moment: readings are written whole."""

    cell_dir: str
    once: bool  # read what is there, rather than what comes as long as the cell is trained

    def __call__(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit's own handler ignores it
        watch(Path(self.cell_dir), self.once)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts again when the job is preempted: the same."""
        return DelayedSubmission(self)


def watch(cell_dir: Path, once: bool = False) -> None:
    """Read what is due, as it is saved, until no process trains the cell and nothing is left; or only `once`."""
    readings = Readings(cell_dir, schema.load(cell_dir / "config.yaml"))
    torch.set_num_threads(readings.config.train.threads)
    while True:
        training = lease.is_held(cell_dir)  # asked first: all that it saved is then seen below
        for path in readings.unread():
            if readings.read(path):
                print(readings.path_of(path), flush=True)
        if once or not training:
            return
        time.sleep(POLL_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 2 where something cannot be read or written, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.jobs.readings", description=__doc__)
    parser.add_argument("cell", type=Path, help="a cell's directory, such as outputs/<name>/<arm>/seed=0")
    parser.add_argument("--watch", action="store_true", help="go on until the cell has ended and nothing is left")
    options = parser.parse_args(arguments)
    try:
        watch(options.cell, once=not options.watch)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
