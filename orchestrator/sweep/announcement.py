"""The word that a scheduler has taken a multirun's jobs, as soon as it has, for those who hand them over only wait."""

from __future__ import annotations

import threading
from pathlib import Path

from submitit.core.utils import JobPaths

LOOK_SECONDS = 0.1
TAKEN = "*_submitted.pkl"  # what submitit calls a job's pickle once the job has an id


class Announcement:
    """Prints `sentence` once, when a job has been taken whose files are in `folder` (submitit's, with its %j)."""

    def __init__(self, folder: Path, sentence: str) -> None:
        self.made = False  # whether any was taken
        self._folder, self._sentence = JobPaths.get_first_id_independent_folder(folder), sentence
        self._before, self._over = self._taken(), threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """Look a last time, and no more; whether any was taken."""
        self._over.set()
        self._thread.join()
        return self.made

    def _wait(self) -> None:
        over = False
        while not self.made and not over:
            over = self._over.wait(LOOK_SECONDS)
            self.made = bool(self._taken() - self._before)
        if self.made:
            print(self._sentence, flush=True)

    def _taken(self) -> set[Path]:
        return {*self._folder.glob(TAKEN), *self._folder.glob(f"*/{TAKEN}")}
