"""The name of a step: `step_00005000` is a checkpoint's directory, and `step_00005000.json` the file of its reading."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"step_(\d{8,})")


def name_of(step: int) -> str:
    """`step_00005000` for 5000."""
    return f"step_{step:08d}"


def step_in(name: str) -> int | None:
    """5000 for `step_00005000`; None for any other name, such as that of a checkpoint that was set aside."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def paths_in(directory: Path, suffix: str = "") -> dict[int, Path]:
    """Step → path of everything in `directory` that is named `step_<step><suffix>`, by ascending step."""
    found = {step_in(path.name.removesuffix(suffix)): path for path in directory.glob(f"step_*{suffix}")}
    return {step: found[step] for step in sorted(step for step in found if step is not None)}


def reading_of(cell_dir: Path, step: int) -> Path:
    """The file of the reading of a cell's checkpoint of `step`."""
    return cell_dir / "forensics" / f"{name_of(step)}.json"


def damage_of(cell_dir: Path, step: int) -> Path:
    """The file of what interventions on a cell's checkpoint of `step` did."""
    return cell_dir / "interventions" / f"{name_of(step)}.json"


def damages_in(cell_dir: Path) -> dict[int, Path]:
    """Step → file of what interventions on the checkpoints of a cell did, by ascending step."""
    return paths_in(cell_dir / "interventions", ".json")


def readings_in(cell_dir: Path) -> dict[int, Path]:
    """Step → file of the readings of a cell, by ascending step; any other name is ignored."""
    return paths_in(cell_dir / "forensics", ".json")
