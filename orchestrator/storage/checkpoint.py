"""Checkpoints, which are whole or absent.

A checkpoint is written into a temporary directory, synced, sealed by `manifest.json` (sizes and sha256 of
every other file, written last) and renamed. Tensors are safetensors; nothing is pickled. An older one may be reduced to
its weights: no run resumes from it, but it can still be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.spec import DecoderSpec
from models.transformer import Decoder
from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.config.schema import Config
from orchestrator.storage import metrics_log, steps
from orchestrator.storage.files import permit_as_umask, write_whole

WEIGHTS = ("model.safetensors", "state.json")  # what a reduced checkpoint holds, beside its manifest


def path_of(directory: Path, step: int) -> Path:
    """The directory of the checkpoint of `step` under a cell's `checkpoints/`."""
    return directory / steps.name_of(step)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's directory. Raises `UserError` for any other name."""
    step = steps.step_in(path.name)
    if step is None:
        raise UserError(f"{path} is not a checkpoint directory: its name should read {steps.name_of(250)}.")
    return step


def saved(directory: Path) -> list[Path]:
    """Checkpoint directories by ascending step, whole or corrupt."""
    return list(steps.paths_in(directory).values())


def save(
    directory: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
    writing: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Path:
    """Write `tensors` (file stem → named tensors) and `state` as the checkpoint of `step`; return its path.

    `writing` is entered just before the rename that makes the checkpoint visible, and may raise to prevent it.
    Raises `UserError` where the disk refuses; the checkpoints on disk then stay as they were.
    """
    final = path_of(directory, step)
    if final.exists():
        return final  # the same step of the same run; resuming has already set corrupt ones aside
    partial = directory / f".{final.name}.{platform.node()}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for stem, named in tensors.items():
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
            save_file(contiguous, partial / f"{stem}.safetensors")
        (partial / "state.json").write_text(json.dumps(state))
        permit_as_umask(partial)
        files = {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(partial.iterdir())}
        for name in files:
            _sync(partial / name)
        (partial / "manifest.json").write_text(json.dumps({"schema": 1, "step": step, "files": files}, indent=1))
        _sync(partial / "manifest.json")
        _sync(partial)
        with writing():
            partial.rename(final)
        _sync(directory)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"Checkpoint {final} could not be written ({error}): make room or make the directory writable "
            "and run the same command again; the checkpoints before it are untouched."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already where it was renamed
    return final


def copy(source: Path, directory: Path, writing: Callable[[], AbstractContextManager[object]] = nullcontext) -> Path:
    """Copy a whole checkpoint into another cell's `directory`, under the same name and key; return its path.

    `writing` is as in `save`. Raises `UserError` where `source` is corrupt or the disk refuses.
    """
    final = directory / source.name
    if reason := corruption(source):
        raise UserError(f"{source} is not a whole checkpoint ({reason}): use another step.")
    partial = directory / f".{final.name}.{platform.node()}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial)
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        with writing():
            partial.rename(final)
        _sync(directory)
    except (OSError, shutil.Error) as error:
        raise UserError(
            f"{source} could not be copied to {final} ({error}): make room, and run the command again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already where it was renamed
    return final


def clear_partial(directory: Path) -> None:
    """Delete what processes that died while saving have left. Only the owner of the cell may call this."""
    for partial in directory.glob(".step_*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def corruption(path: Path, *, digests: bool = True) -> str | None:
    """The first corrupt file of the checkpoint and its fault; None where every byte is as it was written.

    Without `digests`, only the existence and the size of its files are checked, which takes no time.
    """
    try:
        files = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"].items()
        expected = {str(name): (int(of["size"]), str(of["sha256"])) for name, of in files}
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json cannot be read"
    for name, (size, sha256) in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if digests and _sha256(file) != sha256:
            return f"{name} does not have the sha256 it was written with"
    return None


def newest(directory: Path, before: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a step below `before`, and a sentence for every newer one, which is corrupt."""
    warnings: list[str] = []
    for path in reversed([p for p in saved(directory) if before is None or step_of(p) < before]):
        reason = corruption(path)
        if reason is None:
            return path, warnings
        warnings.append(f"{path} is corrupt ({reason}): it is set aside and the one before it is used.")
    return None, warnings


def set_aside(path: Path, reason: str = "corrupt") -> Path:
    """Rename a checkpoint that is corrupt, or `replaced` by a later attempt, so that its step can be written again."""
    attempt = 0
    while (aside := path.with_name(f"{path.name}.{reason}-{attempt}")).exists():
        attempt += 1
    return path.rename(aside)


def key(path: Path) -> str:
    """The sha256 of the manifest that the checkpoint was saved with, which holds that of everything else.

    Raises `OSError` where it has none.
    """
    manifest = (path / "manifest.json").read_bytes()
    with suppress(ValueError):
        document = json.loads(manifest)
        if isinstance(document, dict) and isinstance(document.get("saved_as"), str):
            return str(document["saved_as"])
    return hashlib.sha256(manifest).hexdigest()


def is_reduced(path: Path) -> bool:
    """True for a whole checkpoint that no run can resume from, as it was reduced, perhaps not to the end."""
    return "saved_as" in json.loads((path / "manifest.json").read_text(encoding="utf-8"))


def reduce(path: Path) -> None:
    """Delete what only a resume needs of a checkpoint: the files of its manifest but the weights and `state.json`.

    It is whole at any moment: first a new manifest, with the sha256 of the old one and the names of what is dropped,
    replaces it. Files that no manifest lists stay, and so does a corrupt checkpoint. Raises `OSError` or `UserError`
    where the disk refuses; a later call then finishes it.
    """
    if corruption(path, digests=False):
        return
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    kept = {name: of for name, of in manifest["files"].items() if name in WEIGHTS}
    if kept != manifest["files"]:
        manifest |= {"files": kept, "dropped": sorted(manifest["files"].keys() - kept), "saved_as": key(path)}
        write_whole(path / "manifest.json", json.dumps(manifest, indent=1))
    listed = [path / name for name in manifest.get("dropped", ())]
    killed = path.glob(".manifest.json.*.partial")  # of a process that died while it wrote the new manifest
    if dropped := [file for file in (*listed, *killed) if file.exists()]:
        _sync(path)  # after a power loss, too, no file is missing that the manifest lists
        for file in dropped:
            file.unlink(missing_ok=True)


def prune(
    directory: Path, checkpoints: int | None, states: int | None, spare: Callable[[Path], bool] = lambda path: False
) -> None:
    """Delete all but the newest `checkpoints`, and reduce the others to their weights but for the newest `states`.

    None is all. Those to `spare` stay as they are, and step 0, the reference, is never deleted.
    """
    for age, path in enumerate(reversed(saved(directory))):
        if checkpoints is not None and age >= checkpoints and step_of(path) != 0:
            if not spare(path):
                shutil.rmtree(path, ignore_errors=True)  # a file that cannot be deleted now is deleted by a later call
        elif states is not None and age >= states and not spare(path):
            with suppress(OSError, UserError):  # likewise
                reduce(path)


def read_state(path: Path) -> dict[str, Any]:
    """The checkpoint's `state.json`. Raises `UserError` where it cannot be read."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path / 'state.json'} cannot be read ({error}): {path} is not one of our checkpoints."
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path / 'state.json'} holds a {type(state).__name__}: {path} is not one of our checkpoints.")
    return state


def read_tensors(path: Path, stem: str, *, required: bool = True) -> dict[str, Tensor]:
    """Named tensors of `<stem>.safetensors`; none where it is missing and not `required`.

    Raises `UserError` where a required file is missing, or any is broken.
    """
    if not required and not (path / f"{stem}.safetensors").exists():
        return {}
    try:
        return load_file(path / f"{stem}.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path / stem}.safetensors cannot be read ({error}): use another checkpoint.") from error


def is_cell(directory: Path) -> bool:
    """True for a cell's directory, whose checkpoints may all be gone."""
    files = (directory / "config.yaml", directory / "metrics.jsonl")
    return (directory / "checkpoints").is_dir() or all(file.is_file() for file in files)


def find(source: Path) -> Path:
    """`source` itself where it is a whole checkpoint, the newest whole one where it is a cell's directory.

    Newer ones that are corrupt are counted on stderr. Raises `UserError` for anything else.
    """
    if is_cell(source):
        path, corrupt = newest(source / "checkpoints")
        if path is None and not corrupt and metrics_log.trained_to(source / "metrics.jsonl") is not None:
            raise UserError(
                f"{source} was trained to its end and has no checkpoint any more (deleted, or by status --prune), only "
                "losses and readings: name another cell, or restore a checkpoint."
            )
        if path is None:
            raise UserError(f"{source} has no whole checkpoint ({len(corrupt)} corrupt): train the cell first.")
        if corrupt:
            print(f"{path} is used: {len(corrupt)} newer checkpoint(s) are corrupt.", file=sys.stderr)
        return path
    if not source.is_dir():
        raise UserError(f"{source} does not exist: give a cell's directory or one of its checkpoints.")
    reason = corruption(source)
    if reason is not None:
        raise UserError(
            f"{source} is neither a cell's directory nor a whole checkpoint of ours ({reason}): "
            "give <experiment>/<arm>/seed=<k>, or a step_* directory under its checkpoints/; of a copy that you "
            "changed, delete manifest.json, and orchestrator.forensics reads it as it reads anybody's."
        )
    return source


def config_of(path: Path) -> Config:
    """The configuration of the cell that a checkpoint belongs to."""
    return load.from_file(path.resolve().parents[1] / "config.yaml")


def load_decoder(path: Path) -> Decoder:
    """The model of one of our checkpoints, on CPU, in evaluation mode."""
    state = read_state(path)
    if "spec" not in state:
        raise UserError(f"{path / 'state.json'} has no 'spec': {path} is not one of our checkpoints.")
    try:
        decoder = Decoder(DecoderSpec.from_dict(state["spec"]))
        decoder.load_state_dict(read_tensors(path, "model"))
    except (ValueError, RuntimeError) as error:  # an impossible spec, or tensors of another one
        raise UserError(f"{path} does not hold the model its 'spec' describes ({error}): use another one.") from error
    return decoder.eval()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
