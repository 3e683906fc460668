"""Interventions on the checkpoints of one cell, for those that are due."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.config.schema import Config
from orchestrator.experiments.due import intervention_steps
from orchestrator.forensics.reading import DEFINITIONS, Reading
from orchestrator.interventions.measured import SCHEMA
from orchestrator.storage import checkpoint, steps
from orchestrator.storage.files import keep_as_replaced, write_whole


class _GivenUp(Exception):
    """Interventions end here, by `give_up`."""


@dataclass(frozen=True)
class Damages:
    """The files of one cell. Its readings' lock guards them, since one process reads and intervenes."""

    cell_dir: Path
    config: Config

    def is_due(self, path: Path) -> bool:
        """True where the checkpoint at `path` is one to intervene on."""
        due = intervention_steps(self.config)
        return due is not None and checkpoint.step_of(path) in due

    def is_missing(self, path: Path) -> bool:
        """True where that is due and has not been done as the configuration has it."""
        return self.is_due(path) and self._key_in(path) != self._key(path)

    def make(self, path: Path, reading: Reading, on_trial: Callable[[], object], give_up: Callable[[], bool]) -> bool:
        """Intervene on the checkpoint at `path`, whose reading this is; False where it was written again meanwhile.

        `on_trial` is called after every trial. Once `give_up` returns True this returns False, and leaves what is
        done in a file from which the next call goes on. Raises `UserError` where the held-out text cannot be
        prepared.
        """
        from orchestrator.interventions.intervene import Options, intervene  # transformers: seconds
        from orchestrator.interventions.partial import Partial
        from orchestrator.interventions.progress import Progress

        def advance(_: int) -> None:
            on_trial()
            if give_up():
                raise _GivenUp

        key, wanted, target = self._key(path), self.config.interventions, self._file(path)
        options = Options(tuple(edit.value for edit in wanted.edits), documents=wanted.documents)
        partial = Partial(target.with_name(f".{target.name}.partial"))
        target.parent.mkdir(exist_ok=True)
        try:
            result = intervene(path, options, Progress(advance=advance), partial, device="cpu", reading=reading)
        except _GivenUp:
            return False
        partial.path.unlink(missing_ok=True)
        if self._key(path) != key:
            return False
        if target.exists():
            keep_as_replaced(target)
        write_whole(target, json.dumps(result | {"key": key}, indent=1, allow_nan=False))
        return True

    def _file(self, path: Path) -> Path:
        return steps.damage_of(self.cell_dir, checkpoint.step_of(path))

    def _key(self, path: Path) -> dict[str, Any]:
        """The checkpoint, the settings, the definitions and the schema that a file depends on."""
        wanted = self.config.interventions
        return {
            "checkpoint": checkpoint.key(path),
            "edits": [edit.value for edit in wanted.edits],
            "documents": wanted.documents,
            "scoring": self.config.forensics.scoring.value,
            "definitions": DEFINITIONS,
            "schema": SCHEMA,
        }

    def _key_in(self, path: Path) -> Any:
        try:
            file = self._file(path)
            return _key_of(file, file.stat().st_mtime_ns)
        except OSError:
            return None


@lru_cache(maxsize=4096)  # `--watch` asks every second
def _key_of(file: Path, written: int) -> Any:
    """The key of the file that was `written` then; None where it has none."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return document["key"] | {"schema": document["schema"]}  # older keys lack it
    except (ValueError, LookupError, TypeError):
        return None
