"""What a path stands for: one checkpoint, or the checkpoints of a training run in order."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

from orchestrator import checkpoint
from orchestrator.errors import UserError
from orchestrator.forensics.tensors import BYSTANDERS, METADATA, PICKLES

NUMBERED = re.compile(r"(?!\.)(?!.*\.damaged-)(.*?)(\d+)")  # step_00000500, checkpoint-500; not what was set aside
WEIGHTS = (".safetensors", *PICKLES)


def checkpoints(path: Path) -> list[tuple[int, Path]]:
    """Step and path of each checkpoint in a directory of checkpoints, in order; empty where `path` is none.

    Such a directory holds no weights itself, but subdirectories that do, of one name but for a number at its end.
    Of our own, damaged ones are left out with a line on stderr. Raises `UserError` where the names are unlike.
    """
    if not path.is_dir() or holds_weights(path):
        return []
    found, names = [], set()
    for directory in path.iterdir():
        match = NUMBERED.fullmatch(directory.name)
        if match and directory.is_dir() and holds_weights(directory):
            found.append((int(match[2]), directory))
            names.add(match[1])
    if len(names) > 1 or len(dict(found)) < len(found):
        held = ", ".join(sorted(directory.name for _, directory in found)[:4])
        raise UserError(
            f"{path} holds weights that are not one run's ({held}{', …' if len(found) > 4 else ''}): "
            "name one of them, or a directory whose checkpoints differ only in the number at the end of their names."
        )
    return [(step, directory) for step, directory in sorted(found) if _undamaged(directory)]


def holds_weights(directory: Path) -> bool:
    """Whether a file in the directory itself looks like a model's weights."""
    names = [file.name for file in directory.iterdir()]
    usable = (name for name in names if not any(fnmatch(name, pattern) for pattern in BYSTANDERS))
    return METADATA in names or any(name.endswith(WEIGHTS) for name in usable)


def whole(path: Path) -> Path:
    """What to read: `path`, or the newest whole checkpoint where it is a cell's directory.

    Raises `UserError` where it is sealed as ours are and a byte is not as it was written.
    """
    if (path / "checkpoints").is_dir() or (path / "manifest.json").is_file():
        return checkpoint.find(path)
    if path.is_file() and (path.parent / "manifest.json").is_file():
        checkpoint.find(path.parent)
    return path


def single(path: Path) -> Path:
    """The one checkpoint at `path`. Raises `UserError` where there are several."""
    found = checkpoints(path)
    if len(found) > 1:
        raise UserError(
            f"{path} holds {len(found)} checkpoints, and --against compares one with one: "
            f"name one of them, such as {found[-1][1]}."
        )
    return found[0][1] if found else whole(path)


def _undamaged(directory: Path) -> bool:
    reason = checkpoint.damage(directory) if (directory / "manifest.json").is_file() else None
    if reason is not None:
        print(f"{directory} is left out: it is damaged ({reason}).", file=sys.stderr)
    return reason is None
