"""Tensors on disk, read one at a time: a safetensors file, or shards under an index. Never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from orchestrator.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
READABLE = {"F64", "F32", "F16", "BF16"}  # anything else is quantised, and means nothing without its scales


class Tensors:
    """Names, shapes and lazily read values of the tensors of one checkpoint."""

    def __init__(self, files: dict[str, Path]) -> None:
        """`files`: tensor name → the safetensors file that holds it. Nothing is read yet but the headers."""
        self.files = files
        self._handles = {path: _open(path) for path in sorted(set(files.values()))}
        held = {path: set(handle.keys()) for path, handle in self._handles.items()}
        for name, path in files.items():
            if name not in held[path]:
                raise UserError(f"{path} does not hold {name}, which its index says it does: copy the shards again.")

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the file's header, without reading the values."""
        return tuple(self._handles[self.files[name]].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """The tensor in float64. Raises `UserError` where it is quantised or holds NaN or infinite values."""
        path = self.files[name]
        handle = self._handles[path]
        dtype = handle.get_slice(name).get_dtype()
        if dtype not in READABLE:
            raise UserError(f"{name} in {path} is stored as {dtype}: save the checkpoint in fp32, fp16 or bf16 first.")
        values: np.ndarray = handle.get_tensor(name).to(torch.float64).numpy()
        if not np.isfinite(values).all():
            raise UserError(f"{name} in {path} holds NaN or infinite values: use a checkpoint from before they arose.")
        return values


def open_tensors(source: Path) -> Tensors:
    """The tensors of a directory, a safetensors file or an index. Raises `UserError` where there are none."""
    if not source.exists():
        raise UserError(f"{source} does not exist: give a checkpoint directory or a .safetensors file.")
    if source.is_dir():
        return _open_directory(source)
    if source.suffix in PICKLES:
        raise _pickled(source)
    return _open_index(source) if source.name.endswith(".index.json") else open_file(source)


def open_file(path: Path) -> Tensors:
    """The tensors of one safetensors file."""
    return Tensors(dict.fromkeys(_open(path).keys(), path))


def _open_directory(directory: Path) -> Tensors:
    if (directory / WEIGHTS).is_file():
        return open_file(directory / WEIGHTS)
    if (directory / INDEX).is_file():
        return _open_index(directory / INDEX)
    names = sorted(path.name for path in directory.iterdir())
    for name in names:
        if Path(name).suffix in PICKLES:
            raise _pickled(directory / name)
    found = ", ".join(names[:5]) or "nothing"
    raise UserError(f"{directory} holds no weights: looked for {WEIGHTS} or {INDEX}, found {found}.")


def _open_index(index: Path) -> Tensors:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        files = {str(name): index.parent / str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of safetensors shards ({error!r}): copy it again.") from error
    for path in sorted(set(files.values())):
        if path.parent != index.parent or not path.is_file():
            raise UserError(f"{index} names the shard {path.name}, which is not beside it: copy all shards.")
    return Tensors(files)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}): copy or save it again.") from error


def _pickled(path: Path) -> UserError:
    return UserError(
        f"{path} is a pickle, which can run code when it is loaded: save it as safetensors "
        "(transformers' save_pretrained does)."
    )
