"""The readings of one cell: the first process that finds a due checkpoint unread reads it, and intervenes where due."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.experiments.damages import Damages
from orchestrator.experiments.due import Due, intervention_steps, reading_steps
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import DEFINITIONS, Key, Reading, read_reading
from orchestrator.storage import checkpoint, locks, steps
from orchestrator.storage.files import keep_as_replaced, write_whole

PATIENCE_SECONDS = 3600.0  # longest wait for another process that gives no sign; longer than a reading takes

log = logging.getLogger(__name__)


def key(path: Path) -> Key:
    """The key of a new reading of the checkpoint at `path`. Raises `UserError` for a corrupt one."""
    try:
        return Key(checkpoint.key(path), DEFINITIONS)
    except OSError as error:
        raise UserError(f"{path} is not a whole checkpoint ({error}): rename it to run without it.") from error


@dataclass(frozen=True)
class Readings:
    """The readings of one cell. Any number of processes may make them at once."""

    cell_dir: Path
    config: Config

    @cached_property
    def due(self) -> Due:
        """The steps whose checkpoints are read."""
        return reading_steps(self.config)

    @property
    def damages(self) -> Damages:
        """The interventions on the cell's checkpoints."""
        return Damages(self.cell_dir, self.config)

    def path_of(self, path: Path) -> Path:
        """The file of the reading of the checkpoint at `path`."""
        return steps.reading_of(self.cell_dir, checkpoint.step_of(path))

    def is_unread(self, path: Path) -> bool:
        """True where the checkpoint at `path` is due and unread."""
        return checkpoint.step_of(path) in self.due and not self._is_read(path)

    def is_wanted(self, path: Path) -> bool:
        """True where the checkpoint at `path` is still to be read, or to be intervened on."""
        return self.is_unread(path) or self.damages.is_missing(path)

    def unread(self) -> list[Path]:
        """The checkpoints on disk that are due and unread, by ascending step."""
        return [path for path in checkpoint.saved(self.cell_dir / "checkpoints") if self.is_unread(path)]

    def wanted(self) -> list[Path]:
        """The checkpoints on disk that are still to be read or to be intervened on, by ascending step."""
        return [path for path in checkpoint.saved(self.cell_dir / "checkpoints") if self.is_wanted(path)]

    def lost(self) -> list[int]:
        """The steps at which a reading or interventions are due and missing, and whose checkpoint is gone."""
        made, damages = self.on_disk(), steps.damages_in(self.cell_dir)
        due = {step for step in self.due if step not in made}
        due |= {step for step in intervention_steps(self.config) or () if step not in damages}
        return sorted(due - steps.paths_in(self.cell_dir / "checkpoints").keys())

    def settled(self) -> list[Path]:
        """The readings before the first unread checkpoint, by ascending step: these will not change any more."""
        horizon = min((checkpoint.step_of(path) for path in self.unread()), default=math.inf)
        return [path for step, path in self.on_disk().items() if step < horizon]

    def on_disk(self) -> dict[int, Path]:
        """Step → reading, by ascending step, those of deleted checkpoints included."""
        return steps.readings_in(self.cell_dir)

    def read(self, path: Path, give_up: Callable[[], bool] = locks.never) -> bool:
        """Read the checkpoint at `path`, and intervene on it, where that is wanted; True where this call did either.

        The first process to call does it. Others wait for it for a time: it may be frozen, and a second reading is
        equal. An outdated reading is kept as `.replaced`. A corrupt checkpoint is set aside, unread. Once `give_up`
        returns True, interventions under way are left, and the next call goes on from there.
        Raises `UserError` where the checkpoint cannot be read or its reading not written.
        """
        lock = self.cell_dir / ".readings.lock"
        with locks.hold(lock, give_up=locks.silence(lock, PATIENCE_SECONDS)):
            is_read = path.exists() and self._is_read(path)
            if not path.exists() or (is_read and not self.damages.is_missing(path)):  # by another process
                return False
            if reason := checkpoint.corruption(path):
                log.warning("%s is corrupt (%s): set aside, and not read.", path, reason)
                checkpoint.set_aside(path)
                return False
            reading = read_reading(self.path_of(path)) if is_read else self._make(path)
            if reading is None:
                return False
            if self.damages.is_missing(path):
                return self.damages.make(path, reading, lambda: os.utime(lock), give_up) or not is_read
            return True

    def _make(self, path: Path) -> Reading | None:
        """Write the reading of the checkpoint and return it; None where a resumed run wrote the checkpoint again."""
        now, options = key(path), self.config.forensics
        reading = analyze(path, scoring=options.scoring.value, resamples=options.resamples)
        if key(path) != now:  # this reading is of neither
            return None
        target = self.path_of(path)
        if target.exists():
            keep_as_replaced(target)
        write_whole(target, json.dumps(replace(reading, key=now).to_json(), indent=1))
        return reading

    def _is_read(self, path: Path) -> bool:
        try:
            target = self.path_of(path)
            return _key_in(target, target.stat().st_mtime_ns) == key(path)
        except (OSError, UserError):
            return False


@lru_cache(maxsize=4096)  # `--watch` asks every second, and a reading of many layers is long
def _key_in(reading: Path, written: int) -> Key | None:
    """The key of the reading that was `written` then; None where it has none or the file holds no reading."""
    try:
        return read_reading(reading).key
    except UserError:
        return None
