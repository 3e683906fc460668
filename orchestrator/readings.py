"""A cell's readings: its checkpoints, each read by forensics at most once, beside training.

`python -m orchestrator.readings CELL` reads what a run left unread; `--watch` goes on while the cell is training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import signal
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import submitit
import torch

from orchestrator import checkpoint, forensics, locks, schema, status
from orchestrator.errors import UserError
from orchestrator.files import write_whole
from orchestrator.forensics.analysis import DEFINITIONS
from orchestrator.schema import Config, Where

POLL_SECONDS = 1.0


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

        The first process to come reads; others wait for it. An outdated reading is kept as `.replaced`.
        Raises `UserError` where the checkpoint cannot be read or its reading not written.
        """
        with locks.hold(self.cell_dir / ".readings.lock"):
            if self._is_read(path):
                return False
            now, options = key(path), self.config.forensics
            result = forensics.analyze(path, scoring=options.scoring.value, resamples=options.resamples)
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

    def check(self) -> None:
        """Raise what the readings made so far raised."""
        while self.asked and self.asked[0].done():
            self.asked.popleft().result()

    def wait(self) -> None:
        """Return when all is read; raise what a reading raised."""
        while self.asked:
            self.asked.popleft().result()

    def close(self) -> None:
        """Finish the reading in progress and leave the rest for another time."""
        self.pool.shutdown(cancel_futures=True)


class InJob:
    """Reads in a job of its own, which finds on disk what there is to read and ends when the cell does."""

    def __init__(self, readings: Readings) -> None:
        self.readings, self.job = readings, _submit(readings)

    def add(self, path: Path) -> None:
        """Nothing: the job has seen it."""

    def check(self) -> None:
        """Nothing: a job that died is no reason to stop training, for `wait` reads what it left."""

    def wait(self) -> None:
        """Take part in what is left, so that it ends however the job fares."""
        for path in self.readings.unread():
            self.readings.read(path)

    def close(self) -> None:
        """Nothing: the job reads what is left and ends when this process lets go of the cell."""


READERS: dict[Where, type[InThread] | type[InJob]] = {Where.inline: InThread, Where.job: InJob}


def executor(config: Config, folder: Path) -> submitit.Executor:
    """What runs a cell's readings job, with its logs in `folder`: a process of this machine."""
    local = submitit.LocalExecutor(folder=folder)
    local.update_parameters(timeout_min=60 * config.launcher.timeout_hours)
    return local


def _submit(readings: Readings) -> submitit.Job[None]:
    folder = readings.cell_dir.parents[1] / "jobs"
    # A Ctrl-C reaches the whole group, and submitit's processes would answer it with a traceback. Ignored by
    # inheritance, it stops the cell alone; the job ends after it.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return executor(readings.config, folder).submit(run_job, str(readings.cell_dir))
    except OSError as error:
        raise UserError(f"{folder} cannot take a job ({error}): make room or make it writable.") from error
    finally:
        signal.signal(signal.SIGINT, previous)


def run_job(cell_dir: str) -> None:
    """The body of a readings job: `watch`. It may be killed at any moment: readings are written whole."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit's own handler ignores it
    watch(Path(cell_dir))


def watch(cell_dir: Path, once: bool = False) -> None:
    """Read what is due, as it is saved, until no process trains the cell and nothing is left; or only `once`."""
    readings = Readings(cell_dir, schema.load(cell_dir / "config.yaml"))
    torch.set_num_threads(readings.config.train.threads)
    while True:
        training = locks.is_held(status.cell_lock(cell_dir))  # asked first: all that it saved is then seen below
        for path in readings.unread():
            if readings.read(path):
                print(readings.path_of(path), flush=True)
        if once or not training:
            return
        time.sleep(POLL_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 2 where something cannot be read or written, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.readings", description=__doc__)
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
