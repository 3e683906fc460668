"""Results of unfinished runs, one by one, in a file beside their output: the same command goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.storage.files import write_whole

Place = tuple[int | str | None, ...]  # of a result among those of one run


class Partial:
    """A file with a line of JSON for each result: the digest of all that it depends on, its place and its values.

    Runs that compute something else into the same output keep their lines beside each other, and never take another's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: set[str] = set()

    def of(self, what: Any) -> PartialResults:
        """The results that depend on `what`, in JSON; a line that was cut short or is corrupt is left out."""
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        self._opened.add(digest)
        found = {}
        lines = self._lines()
        for line in lines[:-1]:
            if (read := _read(line)) is not None and read[0] == digest:
                found[read[1]] = read[2]
        if lines[-1]:  # cut short
            self.append("")
        return PartialResults(self, digest, found)

    def append(self, line: str) -> None:
        """Write a line at the end of the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def finish(self) -> bool:
        """Remove the results that were opened here, and the file with the last; True where others' remain in it."""
        read = [(line, _read(line)) for line in self._lines()]
        others = [line for line, of in read if of is not None and of[0] not in self._opened]
        if others:
            write_whole(self.path, "\n".join([*others, ""]))
        else:
            self.path.unlink(missing_ok=True)
        return bool(others)

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").split("\n") if self.path.is_file() else [""]


class PartialResults(MutableMapping[Place, np.ndarray]):
    """Place → values [rows, columns], NaN included, each written to the file as soon as it is known."""

    def __init__(self, file: Partial, digest: str, found: dict[Place, np.ndarray]) -> None:
        self._file, self._digest, self._found = file, digest, found

    def __setitem__(self, place: Place, values: np.ndarray) -> None:
        self._found[place] = values
        rows = [[None if np.isnan(v) else v for v in row] for row in values.tolist()]
        self._file.append(json.dumps([self._digest, place, rows]))

    def __getitem__(self, place: Place) -> np.ndarray:
        return self._found[place]

    def __delitem__(self, place: Place) -> None:
        raise TypeError("results are only added")

    def __iter__(self) -> Iterator[Place]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _read(line: str) -> tuple[str, Place, np.ndarray] | None:
    """Digest, place and values of a line; None for one that holds something else."""
    try:
        digest, place, values = json.loads(line)
        return digest, tuple(place), np.array([[np.nan if v is None else v for v in row] for row in values], float)
    except (ValueError, TypeError):
        return None
