"""Directories of `torch.distributed.checkpoint`: tensors assembled from their chunks, without a process group."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.utils import _create_file_view

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.files import METADATA

# All that `.metadata`, a pickle, may name. None of it does more than hold its arguments.
_CLASSES = (
    metadata.Metadata, metadata.MetadataIndex, metadata.TensorStorageMetadata, metadata.BytesStorageMetadata,
    metadata.ChunkStorageMetadata, metadata.TensorProperties, metadata.StorageMeta, metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo, filesystem._StoragePrefix, torch.Size, OrderedDict,
)  # fmt: skip
INERT: dict[tuple[str, str], Any] = {(of.__module__, of.__qualname__): of for of in _CLASSES} | {
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,  # as Python 3.13 writes it
    ("pathlib", "WindowsPath"): PureWindowsPath,
    ("pathlib._local", "WindowsPath"): PureWindowsPath,
}


@dataclass(frozen=True)
class Chunk:
    """A block of a tensor: where it begins in the tensor, its shape, and its bytes in a file."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Parts:
    """A tensor as its disjoint chunks."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[Chunk]


class Distributed:
    """One DCP directory: its tensors by their path through the dicts that were saved.

    A chunk is the smallest unit that can be read.
    """

    def __init__(self, path: Path) -> None:
        """Raises `UserError` where `.metadata` is broken, or names a class that describes no chunks."""
        self.path = path
        try:
            with (path / METADATA).open("rb") as file:
                self._parts = _parts(_Unpickler(file).load(), path)
        except UserError:
            raise
        except _Foreign as error:
            raise UserError(
                f"{path / METADATA} names {error}, which no checkpoint's metadata needs and which could run code: "
                "do not use it."
            ) from error
        except Exception as error:  # a broken pickle raises anything
            raise UserError(f"{path / METADATA} is broken ({error!r}): copy the whole directory again.") from error
        self.shapes = {key: parts.shape for key, parts in self._parts.items()}
        self._last: tuple[Chunk, Tensor] | None = None  # consecutive blocks of rows lie in one chunk

    def load(self, key: tuple[Hashable, ...], rows: slice | None = None) -> Tensor:
        """The tensor, or some of its rows, in the stored type."""
        parts = self._parts[key]
        if rows is None:
            self.release()
            if len(parts.chunks) == 1:
                return _load(parts.chunks[0])
        start, stop, _ = (rows or slice(None)).indices(parts.shape[0])
        values = torch.empty(max(stop - start, 0), *parts.shape[1:], dtype=parts.dtype)
        for chunk in parts.chunks:
            first, beyond = chunk.start[0], chunk.start[0] + chunk.shape[0]
            low, high = max(start, first), min(stop, beyond)
            if low < high:
                across = (slice(s, s + n) for s, n in zip(chunk.start[1:], chunk.shape[1:], strict=True))
                values[(slice(low - start, high - start), *across)] = self._chunk(chunk)[low - first : high - first]
        if rows is None:
            self.release()
        return values

    def release(self) -> None:
        """Drop the chunk read last."""
        self._last = None

    def _chunk(self, chunk: Chunk) -> Tensor:
        if self._last is None or self._last[0] != chunk:
            self._last = None  # before the next is read, so that one is held at a time
            self._last = chunk, _load(chunk)
        return self._last[1]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) not in INERT:
            raise _Foreign(f"{module}.{name}")
        return INERT[module, name]


class _Foreign(Exception):
    """A class or function that no checkpoint's metadata needs."""


def _parts(described: Any, directory: Path) -> dict[tuple[Hashable, ...], Parts]:
    """Every tensor by its path, which is the flat name itself where `planner_data` records none."""
    paths = described.planner_data or {}
    return {
        tuple(paths.get(name, (name,))): _tensor(name, of, described.storage_data, directory)
        for name, of in described.state_dict_metadata.items()
        if isinstance(of, metadata.TensorStorageMetadata)
    }


def _tensor(name: str, of: metadata.TensorStorageMetadata, storage: Any, directory: Path) -> Parts:
    chunks = [_place(name, block, storage, directory) for block in of.chunks]
    if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(of.size):
        raise UserError(f"{directory} holds only parts of {name}: copy the files of all ranks.")
    return Parts(tuple(of.size), of.properties.dtype, chunks)


def _place(name: str, block: metadata.ChunkStorageMetadata, storage: Any, directory: Path) -> Chunk:
    info = storage[metadata.MetadataIndex(name, block.offsets)]
    path = directory / info.relative_path
    if path.parent != directory or path.name == ".." or not path.is_file():
        raise UserError(f"{directory} lacks the file {info.relative_path}, which holds {name}: copy all of its files.")
    if getattr(info, "transform_descriptors", None):
        raise UserError(f"{path} is compressed ({info.transform_descriptors}): save the checkpoint without extensions.")
    return Chunk(tuple(block.offsets), tuple(block.sizes), path, info.offset, info.length)


def _load(chunk: Chunk) -> Tensor:
    try:
        with chunk.path.open("rb") as file:
            view = cast(IO[bytes], _create_file_view(file, chunk.offset, chunk.length))
            values = torch.load(view, map_location="cpu", weights_only=True)
        if tuple(values.shape) != chunk.shape:
            raise ValueError(f"shape {tuple(values.shape)} instead of {chunk.shape}")
    except Exception as error:  # a broken pickle raises anything
        reason = str(error).partition("\n")[0]
        raise UserError(f"{chunk.path} is not what .metadata says ({reason}): copy the directory again.") from error
    return values.detach()
