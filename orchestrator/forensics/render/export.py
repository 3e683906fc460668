"""Readings as files: CSV with one row per layer, and pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.common.command import writing
from orchestrator.common.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")  # what matplotlib writes by itself

LARGEST = 2**30  # bytes; an earlier result has some thousands per layer


def refuse_foreign(target: Path) -> None:
    """Raise `UserError` where writing `target` would destroy a file that is not an earlier result, such as weights."""
    if not target.is_file() or target.stat().st_size == 0 or target.suffix.lower() in (".csv", *PICTURES):
        return
    try:
        ours = target.stat().st_size < LARGEST and "schema" in json.loads(target.read_bytes())
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{target} exists and is not an earlier result: name another file, or remove it first.")


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write one line per row; None is an empty cell. Raises `UserError` where the disk refuses."""
    with writing(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_figure(figure: Figure, path: Path) -> None:
    """Write the picture in the format that the name ends in. Raises `UserError` where the disk refuses."""
    with writing(path):
        figure.savefig(path)
