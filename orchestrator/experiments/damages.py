"""What interventions on the checkpoints of one cell did, for those that are due."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.schema import Config
from orchestrator.storage import checkpoint, steps
from orchestrator.storage.files import keep_as_replaced, write_whole


@dataclass(frozen=True)
class Damages:
    """The files of one cell. Its readings' lock guards them: who reads a checkpoint also intervenes."""

    cell_dir: Path
    config: Config

    def is_due(self, path: Path) -> bool:
        """True where the checkpoint at `path` is one to intervene on: every `interventions.every` steps, and last."""
        every, step = self.config.interventions.every, checkpoint.step_of(path)
        return every is not None and (step % every == 0 or step == self.config.train.steps)

    def is_missing(self, path: Path) -> bool:
        """True where that is due and has not been done as the configuration has it."""
        return self.is_due(path) and self._key_in(path) != self._key(path)

    def make(self, path: Path) -> None:
        """Intervene on the checkpoint at `path`. Raises `UserError` where its held-out text cannot be prepared."""
        from orchestrator.interventions.intervene import Options, Progress, intervene  # scipy and transformers

        wanted = self.config.interventions
        options = Options(tuple(edit.value for edit in wanted.edits), documents=wanted.documents)
        result = intervene(path, options, Progress(), device="cpu")
        target = self._file(path)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            keep_as_replaced(target)
        write_whole(target, json.dumps(result | {"key": self._key(path)}, indent=1))

    def _file(self, path: Path) -> Path:
        return steps.damage_of(self.cell_dir, checkpoint.step_of(path))

    def _key(self, path: Path) -> dict[str, Any]:
        """All that the file depends on."""
        wanted = self.config.interventions
        edits = [edit.value for edit in wanted.edits]
        return {"checkpoint": checkpoint.key(path), "edits": edits, "documents": wanted.documents}

    def _key_in(self, path: Path) -> Any:
        try:
            return json.loads(self._file(path).read_text())["key"]
        except (OSError, ValueError, LookupError, TypeError):
            return None
