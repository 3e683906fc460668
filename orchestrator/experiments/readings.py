"""The readings of one cell: each due checkpoint is read by forensics once, by whichever process comes first."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.forensics.analyze import analyze
from orchestrator.forensics.reading import DEFINITIONS, Key, read_reading
from orchestrator.storage import checkpoint, locks, steps
from orchestrator.storage.files import keep_as_replaced, write_whole

PATIENCE_SECONDS = 3600.0  # longest wait for another process that reads; longer than a reading takes

log = logging.getLogger(__name__)


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
        return [path for step, path in self._by_step().items() if step < horizon]

    def on_disk(self) -> set[Path]:
        """Every reading that is there, those of deleted checkpoints included."""
        return set(self._by_step().values())

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
            reading = analyze(path, scoring=options.scoring.value, resamples=options.resamples)
            if key(path) != now:  # a resumed run wrote it again meanwhile: this would be a reading of neither
                return False
            target = self.path_of(path)
            if target.exists():
                keep_as_replaced(target)
            write_whole(target, json.dumps(replace(reading, key=now).to_json(), indent=1))
            return True

    def _by_step(self) -> dict[int, Path]:
        return steps.paths_in(self.cell_dir / "forensics", ".json")

    def _is_read(self, path: Path) -> bool:
        try:
            target = self.path_of(path)
            return _key_in(target, target.stat().st_mtime_ns) == key(path)
        except (OSError, UserError):
            return False


@lru_cache(maxsize=4096)  # a watcher asks every second, and a reading of many layers is long
def _key_in(reading: Path, written: int) -> Key | None:
    """The key of the reading of that modification time; None where it has none or the file holds no reading."""
    try:
        return read_reading(reading).key
    except UserError:
        return None
