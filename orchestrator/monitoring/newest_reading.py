"""The part of a cell's newest reading that a status shows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.forensics.measures.finding import Finding
from orchestrator.forensics.reading import read_reading, roles_of
from orchestrator.forensics.roles.palette import letter
from orchestrator.storage.steps import reading_of


@dataclass(frozen=True)
class Newest:
    """The newest reading's roles and pathology."""

    step: int
    roles: tuple[str, ...]  # layer by layer
    changed: int | None  # layers of another role than in the reading before; None where there is none
    findings: tuple[Finding, ...]  # worst first

    @property
    def letters(self) -> str:
        """One letter per layer; a dot is a tie, a dash no role."""
        return "".join(map(letter, self.roles))


def newest(cell_dir: Path, steps: Collection[int]) -> Newest | None:
    """The last of the readings of `steps`, compared with the one before it; None without any.

    Raises `OSError` where its file is gone, and `UserError` where it is not the reading of that step.
    """
    if not steps:
        return None
    *earlier, step = sorted(steps)
    roles, findings = _read_at(reading_of(cell_dir, step))
    return Newest(step, roles, _changed(cell_dir, earlier, roles), findings)


def _changed(cell_dir: Path, earlier: list[int], roles: tuple[str, ...]) -> int | None:
    """The number of layers whose letter differs from the last of the `earlier` steps (all ties have one letter)."""
    try:
        before, _ = _read_at(reading_of(cell_dir, earlier[-1]))
    except (IndexError, OSError, UserError):  # the first reading, or one that has just been set aside
        return None
    if len(before) != len(roles):
        return None
    return sum(letter(old) != letter(new) for old, new in zip(before, roles, strict=True))


def _read_at(path: Path) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)  # `--watch` asks every second, and a reading of many layers is long
def _read(path: Path, written: int) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """Roles and findings of the reading that was `written` then. Raises `UserError` where the file holds none."""
    reading = read_reading(path)
    return tuple(roles_of(reading)), tuple(reading.pathology)
