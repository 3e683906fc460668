"""Results of an unfinished run, batch by batch, in a file beside its output: the same command goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.storage.files import write_whole


class PartialResults(MutableMapping[int, np.ndarray]):
    """Batch → its results. A line of JSON is appended for each; a line that was cut short is left out.

    `of`: all that the results depend on, in JSON; every line has its digest, so that those of a process that computes
    something else into the same file are never taken for them.
    """

    def __init__(self, path: Path, of: Any) -> None:
        self.path = path
        self._of = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
        self._found: dict[int, np.ndarray] = {}
        kept = []
        for line in (
            path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        ):  # the rest was cut short
            try:
                digest, place, values = json.loads(line)
                read = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
            except (ValueError, TypeError):  # corrupt: it is computed again
                continue
            if digest == self._of:
                self._found[place] = read
                kept.append(line)
        write_whole(path, "\n".join([*kept, ""]))

    def __setitem__(self, place: int, values: np.ndarray) -> None:
        self._found[place] = values
        rows = [[None if np.isnan(v) else v for v in row] for row in values.tolist()]
        with self.path.open("a") as file:
            file.write(json.dumps([self._of, place, rows]) + "\n")

    def __getitem__(self, place: int) -> np.ndarray:
        return self._found[place]

    def __delitem__(self, place: int) -> None:
        raise TypeError("results are only added")

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
