"""Results of an unfinished run, batch by batch, in a file beside its output: the same command goes on from there."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.storage.files import write_whole


class PartialResults(MutableMapping[int, np.ndarray]):
    """Batch → its results. A line of JSON is appended for each; a line that was cut short is left out.

    `of`: all that the results depend on, in JSON. A file of anything else is begun anew.
    """

    def __init__(self, path: Path, of: Any) -> None:
        self.path = path
        self._found: dict[int, np.ndarray] = {}
        head = json.dumps({"of": of}, sort_keys=True)
        lines = path.read_text().split("\n") if path.is_file() else []
        kept = [head]
        for line in lines[1:-1] if lines and lines[0] == head else []:  # what follows the last newline was cut short
            try:
                place, values = json.loads(line)
                self._found[place] = np.array(
                    [[np.nan if v is None else v for v in row] for row in values], dtype=float
                )
            except (ValueError, TypeError):  # corrupt: it is computed again
                continue
            kept.append(line)
        write_whole(path, "\n".join([*kept, ""]))

    def __setitem__(self, place: int, values: np.ndarray) -> None:
        self._found[place] = values
        rows = [[None if np.isnan(v) else v for v in row] for row in values.tolist()]
        with self.path.open("a") as file:
            file.write(json.dumps([place, rows]) + "\n")

    def __getitem__(self, place: int) -> np.ndarray:
        return self._found[place]

    def __delitem__(self, place: int) -> None:
        raise TypeError("results are only added")

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
