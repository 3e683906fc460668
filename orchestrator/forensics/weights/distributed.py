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

# All that `.metadata`, a pickle, may name: they only store their arguments.
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


Key = tuple[Hashable, ...]


@dataclass(frozen=True)
class Chunk:
    """A block of a tensor: where it begins in the tensor, its shape, and its bytes in a file."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    path: Path
    offset: int
    length: int


class Distributed:
    """One DCP directory: its tensors by their path through the dicts that were saved.

    A chunk is the smallest unit that can be read.
    """

    def __init__(self, path: Path) -> None:
        """Raises `UserError` where `.metadata` is broken, or names a class that describes no chunks."""
        self.path = path
        self.shapes: dict[Key, tuple[int, ...]] = {}
        self._types: dict[Key, torch.dtype] = {}
        self._chunks: dict[Key, list[Chunk]] = {}
        self._last: tuple[Chunk, Tensor] | None = None  # consecutive blocks of rows lie in one chunk
        try:
            with (path / METADATA).open("rb") as file:
                described = _Unpickler(file).load()
            keys = described.planner_data or {}
            for name, of in described.state_dict_metadata.items():
                if isinstance(of, metadata.TensorStorageMetadata):
                    key = tuple(keys.get(name, (name,)))
                    self.shapes[key], self._types[key] = tuple(of.size), of.properties.dtype
                    self._chunks[key] = _chunks(name, of, described.storage_data, path)
        except UserError:
            raise
        except _Foreign as error:
            raise UserError(
                f"{path / METADATA} names {error}, which no checkpoint's metadata needs and which could run code: "
                "do not use it."
            ) from error
        except Exception as error:  # a broken pickle raises anything
            raise UserError(f"{path / METADATA} is broken ({error!r}): copy the whole directory again.") from error

    def load(self, key: Key, rows: slice | None = None) -> Tensor:
        """The tensor, or some of its rows, in the stored type."""
        shape, chunks = self.shapes[key], self._chunks[key]
        if rows is None:
            self.release()
            if len(chunks) == 1:
                return _load(chunks[0])
        start, stop, _ = (rows or slice(None)).indices(shape[0])
        values = torch.empty(max(stop - start, 0), *shape[1:], dtype=self._types[key])
        for chunk in chunks:
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


def _chunks(name: str, of: metadata.TensorStorageMetadata, storage: Any, directory: Path) -> list[Chunk]:
    """The chunks of a tensor. Raises `UserError` where they are not whole and uncompressed in this directory."""
    chunks = []
    for block in of.chunks:
        info = storage[metadata.MetadataIndex(name, block.offsets)]
        path = directory / info.relative_path
        if path.parent != directory or path.name == ".." or not path.is_file():
            raise UserError(
                f"{directory} lacks the file {info.relative_path}, which holds {name}: copy all of its files."
            )
        if codec := getattr(info, "transform_descriptors", None):
            raise UserError(f"{path} is compressed ({codec}): save the checkpoint without extensions.")
        chunks.append(Chunk(tuple(block.offsets), tuple(block.sizes), path, info.offset, info.length))
    if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(of.size):
        raise UserError(f"{directory} holds only parts of {name}: copy the files of all ranks.")
    return chunks


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
