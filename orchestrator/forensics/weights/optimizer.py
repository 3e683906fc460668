"""Adam's moments by the names of their parameters, from our checkpoints or torch's optimizer states."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.archives import Archive
from orchestrator.forensics.weights.files import METADATA, PICKLES
from orchestrator.forensics.weights.selection import Key, unwrapped
from orchestrator.forensics.weights.tensors import Tensors, everything, open_file, open_store

MOMENTS = ("exp_avg", "exp_avg_sq")
_FLAT = re.compile(r"^(?:optim\w*\.)?(?:state\.)?")
FILES = ("optimizer.safetensors", "optimizer.pt", "optimizer.pth", "optimizer.bin")


def moments_beside(source: Path) -> Tensors | None:
    """The moments beside a checkpoint's weights: ours, or torch's that name their parameters; None without them.

    Torch's are looked for in a checkpoint's own directory alone: beside a file there may be those of another step.
    """
    ours, *others = FILES
    directory = source if source.is_dir() else source.parent
    if (directory / ours).is_file():
        return open_moments(directory / ours)
    for file in (directory / name for name in others if source.is_dir()):
        if file.is_file():
            with suppress(UserError):  # without names, or not Adam's: the weights are read all the same
                return open_moments(file)
    return None


def open_moments(source: Path) -> Tensors:
    """`<parameter>.exp_avg` and `<parameter>.exp_avg_sq` of a file, or of a directory with an optimizer in it.

    A torch state dict names its tensors by `param_names` (torch ≥ 2.6) or by its keys.
    Raises `UserError` where there are no moments, or no names.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist: give the file of the optimizer's state.")
    if source.is_dir() and not (source / METADATA).is_file():
        files = [source / name for name in FILES if (source / name).is_file()]
        if not files:
            raise UserError(f"{source} holds no optimizer state: looked for {', '.join(FILES)}.")
        source = files[0]
    if not source.is_dir() and source.suffix not in PICKLES:
        return open_file(source)
    store = open_store(source)
    parameters = _parameters(store.contents()) if isinstance(store, Archive) else {}
    store.release()
    moments = Tensors(everything(store), _named_moments(store.shapes, parameters))
    if not moments.names:
        raise UserError(f"{source} holds no {' or '.join(MOMENTS)}: give the state of an Adam or AdamW.")
    if any(name.partition(".")[0].isdecimal() and name.count(".") == 1 for name in moments.names):
        raise UserError(
            f"{source} numbers its parameters without naming them, and numbers cannot be tied to tensors: "
            "build the optimizer from model.named_parameters() (torch 2.6 or newer) and save its state again."
        )
    return moments


def _parameters(contents: Any) -> dict[Hashable, str]:
    """Number → name, from the first `param_groups` with `param_names` at any depth; empty where there are none."""
    if not isinstance(contents, Mapping):
        return {}
    if isinstance(groups := contents.get("param_groups"), list):
        return {number: name for group in groups if isinstance(group, Mapping) for number, name in _named(group)}
    return next((found for inner in contents.values() if (found := _parameters(inner))), {})


def _named(group: Mapping[str, Any]) -> list[tuple[Hashable, str]]:
    numbers, names = group.get("params"), group.get("param_names")
    if not (isinstance(numbers, list) and isinstance(names, list)):
        return []
    return [(number, str(name)) for number, name in zip(numbers, names, strict=False) if isinstance(number, Hashable)]


def _named_moments(keys: Iterable[Key], parameters: Mapping[Hashable, str]) -> dict[str, Key]:
    """`<parameter>.<moment>` → key of every moment, numbers replaced by `parameters`."""
    found = [(*place, key) for key in keys if (place := _parameter_and_moment(key))]
    saved = {parameter: parameters.get(parameter, str(parameter)) for parameter, _, _ in found}
    names = dict(zip(saved, unwrapped(list(saved.values())), strict=True))
    return {f"{names[parameter]}.{moment}": key for parameter, moment, key in found}


def _parameter_and_moment(key: Key) -> tuple[Hashable, str] | None:
    """Parameter and moment of the key (…, "state", parameter, moment) or "state.<parameter>.<moment>"; else None."""
    *outer, last = key
    if outer and last in MOMENTS:
        return outer[-1], str(last)
    name, _, moment = str(last).rpartition(".")
    return (_FLAT.sub("", name), moment) if moment in MOMENTS else None
