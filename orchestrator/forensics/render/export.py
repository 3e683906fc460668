"""Results as files: JSON with everything, CSV with one row per layer, and the picture."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.common.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")  # what matplotlib writes by itself

LARGEST = 2**30  # bytes; an earlier result has some thousands per layer

Row = Mapping[str, Any]  # column → value; None is an empty cell


def refuse_unwritable(target: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Raise `UserError`, before any work, for a file that could not be written, or whose kind is none of `suffixes`."""
    if target is None:
        return
    if suffixes and target.suffix.lower() not in suffixes:
        raise UserError(f"{target} cannot be drawn: end its name in one of {', '.join(suffixes)}.")
    if target.is_dir():
        raise UserError(f"{target} cannot be written: it is a directory; name a file in it.")
    if not target.parent.is_dir():
        raise UserError(f"{target} cannot be written: make the directory {target.parent} first.")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"{target} cannot be written: you may not write there; name another place.")


def refuse_foreign(target: Path | None) -> None:
    """Raise `UserError` where writing `target` would destroy a file that is no earlier result, such as weights."""
    if (
        target is None
        or not target.is_file()
        or target.stat().st_size == 0
        or target.suffix.lower() in (".csv", *PICTURES)
    ):
        return
    try:
        ours = target.stat().st_size < LARGEST and "schema" in json.loads(target.read_bytes())
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{target} is there and no earlier result: name another file, or remove it first.")


def write_json(document: Row, path: Path) -> None:
    """The whole document; never NaN. Raises `UserError` where the disk refuses."""
    with _told(path):
        path.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line per row under the names of the first. Raises `UserError` where the disk refuses."""
    with _told(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_figure(figure: Figure, path: Path) -> None:
    """The picture, of the kind that the name ends in. Raises `UserError` where the disk refuses."""
    with _told(path):
        figure.savefig(path)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): name another place.") from error


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per layer of a result: layer, role, margin, each score, the paper's role, evidence, each measure."""
    return [
        {
            "layer": layer["layer"],
            "role": layer["role"],
            "margin": layer["margin"],
            **{f"score_{role}": score for role, score in layer["scores"].items()},
            "role_paper": layer["role_paper"],
            "evidence": " ".join(layer["evidence"]),
            "coverage": layer["coverage"],
            "width": layer["width"],
            **layer["measures"],
        }
        for layer in result["layers"]
    ]
