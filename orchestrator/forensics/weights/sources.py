"""The checkpoints at a path: one, or those of a training run in order."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.files import ADAPTERS, GGUF, INDEX, METADATA, OTHERS, PICKLES, STEPS, USUAL
from orchestrator.forensics.weights.parts import DIRECTORIES, refuse_ranks
from orchestrator.storage import checkpoint

ASIDE = "corrupt|damaged|replaced"  # ends of the names of checkpoints that were set aside; `damaged` in older cells
NUMBERED = re.compile(rf"(?!\.)(?!.*\.(?:{ASIDE})-)(.*?)(\d+)")  # step_500, checkpoint-500
COUNTED = re.compile(r"(?:^|.*[^a-z])(?:step|iter|iteration|epoch|checkpoint|ckpt|update)s?[_=-]?", re.IGNORECASE)
WEIGHTS = (".safetensors", *PICKLES, GGUF)


def checkpoints(path: Path) -> list[tuple[int, Path]]:
    """Step and path of each checkpoint in a directory of checkpoints, in order; empty where `path` is not one.

    They are subdirectories of weights whose names differ only in a number at the end, or files of weights whose names
    say what they count, such as step_500.pt (model-2.bin may be a shard). Corrupt checkpoints of ours are left out with
    a line on stderr. Raises `UserError` where names differ otherwise.
    """
    if not path.is_dir():
        return []
    files = holds_weights(path)
    numbered = (entry for entry in path.iterdir() if NUMBERED.fullmatch(entry.name) and entry.is_dir())
    directories = filter(holds_weights, numbered)
    held = list(_counted_files(path) if files else directories)
    refuse_ranks(path, (entry.name for entry in held), DIRECTORIES)
    found = _in_order(path, [(entry.name, entry.stem if files else entry.name, entry) for entry in held])
    return [(step, entry) for step, entry in found if _is_whole(entry)]


def revisions(path: Path) -> list[tuple[int, Path]]:
    """Step and snapshot of each numbered revision of a repository in the hub's cache, such as Pythia's `step1000`.

    Empty where `path` is not one, or holds fewer than two; revisions without weights are not among them. Raises
    `UserError` as `checkpoints` does.
    """
    refs = path / "refs"
    if not (path.name.startswith("models--") and refs.is_dir()):
        return []
    held = []
    for ref in refs.iterdir():
        if NUMBERED.fullmatch(ref.name) and ref.is_file():
            snapshot = path / "snapshots" / ref.read_text(encoding="utf-8").strip()
            if snapshot.is_dir() and holds_weights(snapshot):
                held.append((ref.name, ref.name, snapshot))
    return _in_order(path, held) if len(held) > 1 else []


def _in_order(path: Path, held: Iterable[tuple[str, str, Path]]) -> list[tuple[int, Path]]:
    """Step and path of each (name, name that ends in the step, path), by step; those without a number are left out.

    Raises `UserError` where the names differ in more than that number.
    """
    found, names, listing = [], set(), []
    for name, counted, entry in held:
        if match := NUMBERED.fullmatch(counted):
            found.append((int(match[2]), entry))
            names.add(re.sub(r"\d+", "0", match[1]))  # epoch=1-step=500, as Lightning names them
            listing.append(name)
    if len(names) > 1 or len(dict(found)) < len(found):
        listed = ", ".join(sorted(listing)[:4])
        raise UserError(
            f"{path} holds weights that are not one run's ({listed}{', …' if len(found) > 4 else ''}): "
            "name one of them, or a directory whose checkpoints differ only in the number at the end of their names."
        )
    return sorted(found)


def unit(checkpoint: Path) -> str:
    """Unit of the number at the end of a checkpoint's name: `epoch` where the name says so, else `step`."""
    words: list[str] = re.findall(r"epoch|step|iter", checkpoint.name.lower())
    return "epoch" if words[-1:] == ["epoch"] else "step"


def recorded_step(source: Path, metadata: Mapping[str, Any]) -> int | None:
    """The step of a checkpoint that others wrote; None where nothing says it.

    From the Trainer's `trainer_state.json` beside the weights, the count in the file itself (nanoGPT's `iter_num`,
    Lightning's `global_step`), or a name such as `checkpoint-500`. `metadata`: what the file says of itself.
    """
    is_whole = source.is_dir() or source.name in USUAL
    directory = source if source.is_dir() else source.parent
    if is_whole and (step := _global_step(directory / "trainer_state.json")) is not None:
        return step
    if (step := next((metadata[key] for key in STEPS if key in metadata), None)) is not None:
        return int(step)
    named = directory.resolve() if is_whole else source
    match = NUMBERED.fullmatch(named.name if is_whole else named.stem)
    return int(match[2]) if match and COUNTED.fullmatch(match[1]) and unit(named) == "step" else None


def _global_step(path: Path) -> int | None:
    try:
        step = json.loads(path.read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # none, or another's file of that name
        return None
    return step if isinstance(step, int) else None


def _counted_files(directory: Path) -> list[Path]:
    """Files of weights that are checkpoints by their names, if several; none where the directory is one checkpoint."""
    if any((directory / name).is_file() for name in (*USUAL, METADATA)):
        return []
    files = [file for file in directory.iterdir() if file.suffix in WEIGHTS and NUMBERED.fullmatch(file.stem)]
    counted = [file for file in files if COUNTED.fullmatch(file.stem.rstrip("0123456789"))]
    return counted if len(counted) > 1 else []


def holds_weights(directory: Path) -> bool:
    """True where a file directly in the directory looks like a model's weights, or an adapter's."""
    names = [file.name for file in directory.iterdir()]
    usable = (name for name in names if not any(fnmatch(name, pattern) for pattern in OTHERS))
    return (
        METADATA in names or any(name in ADAPTERS for name in names) or any(name.endswith(WEIGHTS) for name in usable)
    )


def whole(path: Path) -> Path:
    """`path`, or the newest whole checkpoint where it is a cell's directory.

    Raises `UserError` where its manifest shows that a byte has changed, for an experiment, naming its cells, for
    several checkpoints, naming the newest, and where there are no weights.
    """
    if (path / "experiment.yaml").is_file():
        cells = [str(of.parent) for of in sorted(path.glob("*/*/checkpoints"))]
        raise UserError(
            f"{path} is an experiment: give one of its cells, such as {', '.join(cells[:3]) or '(none yet)'}."
        )
    if checkpoint.is_cell(path) or (path / "manifest.json").is_file():
        return checkpoint.find(path)
    if len(found := checkpoints(path)) > 1:
        raise UserError(f"{path} holds {len(found)} checkpoints: name one of them, such as {found[-1][1]}.")
    if path.is_dir() and not holds_weights(path):
        raise no_weights(path)
    if path.is_file() and (path.parent / "manifest.json").is_file():
        checkpoint.find(path.parent)
    return path


def no_weights(directory: Path) -> UserError:
    """The error for a directory in which no weights are found; it names a checkpoint below it, where there is one."""
    names = sorted(file.name for file in directory.iterdir())
    found = f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else "nothing"
    below = next((of for of in sorted(directory.iterdir()) if of.is_dir() and holds_weights(of)), None)
    return UserError(
        f"{directory} holds no weights: looked for {USUAL[0]}, any file that ends in .safetensors, "
        f"{', '.join(PICKLES)} or {GGUF}, an index of shards (*{INDEX}), an adapter, and a distributed "
        f"checkpoint ({METADATA}); found {found}{'' if below is None else f': give {below}'}."
    )


def no_tensors(file: Path) -> UserError:
    """The error for a file of another kind."""
    return UserError(
        f"{file} is no checkpoint: give a file that ends in {', '.join(WEIGHTS[:-1])} or {GGUF}, or a checkpoint's "
        "directory."
    )


def single(path: Path) -> Path:
    """The one checkpoint at `path`. Raises `UserError` where there are several."""
    found = checkpoints(path)
    if len(found) > 1:
        raise UserError(
            f"{path} holds {len(found)} checkpoints, and --against compares one with one: "
            f"name one of them, such as {found[-1][1]}."
        )
    return found[0][1] if found else whole(path)


def _is_whole(directory: Path) -> bool:
    reason = checkpoint.corruption(directory) if (directory / "manifest.json").is_file() else None
    if reason is not None:
        print(f"{directory} is left out: it is corrupt ({reason}).", file=sys.stderr)
    return reason is None
