"""Tensors on disk, read one at a time: one interface to every format of checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import size
from orchestrator.forensics.weights.archives import HELD, Archive
from orchestrator.forensics.weights.files import ADAPTERS, GGUF, INDEX, METADATA, OTHERS, PICKLES, USUAL
from orchestrator.forensics.weights.parts import complete, refuse_narrow, refuse_part, refuse_ranks, refuse_world
from orchestrator.forensics.weights.quantised import dequantised
from orchestrator.forensics.weights.selection import MOMENTS, Key, select
from orchestrator.forensics.weights.sources import no_tensors, no_weights

ALIGNED = 64  # bytes: where torch places what it allocates
LARGEST = 1e15  # of a weight: sums of squares stay within fp32
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}  # other types need scales

LFS = b"version https://git-lfs.github.com/spec/"  # how a pointer begins that stands for a file


class NotFinite(UserError):
    """A tensor holds NaN or infinite values."""


class Store(Protocol):
    """One file, or one directory of chunks: its tensors as they are stored."""

    path: Path

    @property
    def shapes(self) -> Mapping[Key, tuple[int, ...]]:
        """Shape of every tensor, from headers."""

    def load(self, key: Key, rows: slice | None = None) -> Tensor:
        """The tensor, or some of its rows, in the stored type; nothing else of the file stays in memory."""

    def release(self) -> None:
        """Drop mapped and cached data."""


class Tensors:
    """Names, shapes and lazily read values of the tensors of one checkpoint."""

    def __init__(
        self, stores: Mapping[Key, Store], names: Mapping[str, Key], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """`stores`: key → the store that holds it; `names`: name → key; `metadata`: what a GGUF file says of itself."""
        self.metadata = dict(metadata or {})
        self.names = frozenset(names)
        self._places = {name: (stores[key], key) for name, key in names.items()}
        self._stores = list({id(store): store for store, _ in self._places.values()}.values())

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the file's header, without reading the values."""
        store, key = self._places[name]
        return store.shapes[key]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """The tensor, or some of its rows, in fp32. Raises `UserError` where it is quantised or not finite."""
        store, key = self._places[name]
        return _plain(store.load(key, rows), name, store.path)

    def rows(self, name: str, block: int) -> Iterator[Tensor]:
        """Consecutive blocks [≤ block, n] of a matrix [m, n], each as `read` would give it."""
        for start in range(0, self.shape(name)[0], block):
            yield self.read(name, slice(start, start + block))

    def take(self, name: str, indices: Sequence[int]) -> Tensor:
        """Rows of a matrix [m, n], as `read` would give them: [indices, n]."""
        store, key = self._places[name]
        # Copied: a row of a mapped file keeps the pages around it in memory, which may be 2 MB.
        rows = {index: store.load(key, slice(index, index + 1)).clone() for index in sorted(set(indices))}
        return _plain(torch.cat([rows[index] for index in indices]), name, store.path)

    def release(self) -> None:
        """Drop mapped and cached data; tensors can still be read."""
        for store in self._stores:
            store.release()


class SafeFile:
    """One safetensors file, mapped anew once `HELD` bytes were read.

    Not at every read: that parses the header, which grows with the number of tensors, as the number of reads does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._read = _open(path), 0
        self.shapes: dict[Key, tuple[int, ...]] = {
            (name,): tuple(self._file.get_slice(name).get_shape())
            for name in self._file.keys()  # noqa: SIM118
        }

    def load(self, key: Key, rows: slice | None = None) -> Tensor:
        file = self._file  # threads read side by side
        if file is None or self._read > HELD:
            file, self._read = _open(self.path), 0
            self._file = file
        try:
            values: Tensor = file.get_tensor(key[0]) if rows is None else file.get_slice(key[0])[rows]
            self._read += values.numel() * values.element_size()
            return values
        except SafetensorError as error:  # a type that torch lacks
            raise UserError(
                f"{key[0]} in {self.path} cannot be read ({error}): save the checkpoint in fp32, fp16 or bf16 first."
            ) from error

    def release(self) -> None:
        """Unmap the file."""
        self._file = None


def open_tensors(source: Path, chosen: str | None = None) -> Tensors:
    """The weights in a directory, an index of shards, a file (safetensors, torch.save'd, GGUF) or a DCP directory.

    `chosen`: which of several models there (`selection.select`). Raises `UserError` for none, for several candidates,
    for a part of a model, and for broken files.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist: give a checkpoint directory or a file of weights.")
    is_distributed = (source / METADATA).is_file() and not any((source / name).is_file() for name in USUAL)
    files = _find(source) if source.is_dir() and not is_distributed else [source]
    if len(files) > 1:
        return _model(source, _joined(files), chosen)
    refuse_part(files[0])
    if files[0].name.endswith(INDEX):
        return _model(files[0], _open_index(files[0]), chosen)
    store = open_store(files[0])
    if isinstance(store, Archive):
        refuse_world(files[0], store.contents())
        store.release()
    found = named_weights(store, chosen)
    refuse_narrow(files[0], {name: found.shape(name) for name in found.names})
    return found


def named_weights(store: Store, chosen: str | None = None, quantisation: Mapping[str, Any] | None = None) -> Tensors:
    """The model's weights in a store. Raises `UserError` where it has none, or several models of which none is named.

    `chosen`: see `selection.select`; `quantisation`: see `quantised.dequantised`.
    """
    return _model(store.path, everything(store), chosen, quantisation)


def _model(
    source: Path, stores: Mapping[Key, Store], chosen: str | None, quantisation: Mapping[str, Any] | None = None
) -> Tensors:
    if stores and all(str(key[-1]).rpartition(".")[2] in {*MOMENTS, "step"} for key in stores):
        raise UserError(f"{source} is an optimizer's state, not a model: give the directory of the model's weights.")
    stores = dequantised(source, stores, quantisation)
    metadata = next((getattr(store, "metadata", None) for store in stores.values()), None)
    found = Tensors(stores, select(source, stores, chosen), metadata)
    if not found.names:
        raise UserError(f"{source} holds no tensors of a model: give the file with its state_dict.")
    if factor := next((name for name in sorted(found.names) if ".lora_A." in name), None):
        raise UserError(
            f"{source} holds LoRA factors among its weights ({factor}): merge them (merge_and_unload), or give the "
            "directory that PEFT's save_pretrained writes."
        )
    if odd := next((name for name in sorted(found.names) if not name.isprintable()), None):
        raise UserError(
            f"{source} holds a tensor named {odd!r}, which would send commands to a terminal: do not use it."
        )
    return found


def open_store(path: Path) -> Store:
    """A file of tensors, or a DCP directory. Raises `UserError` where it is broken, or stands for a file elsewhere."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise UserError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` there.")
    if not path.is_dir() and path.suffix != GGUF:
        return Archive(path) if path.suffix in PICKLES else SafeFile(path)
    if path.suffix == GGUF:
        from orchestrator.forensics.weights import gguf  # here: few readings need either

        return gguf.GGUF(path)
    from orchestrator.forensics.weights.distributed import Distributed  # here: it costs 50 MB

    return Distributed(path)


def open_file(path: Path) -> Tensors:
    """All tensors of one safetensors file, under the names they have there."""
    stores = everything(SafeFile(path))
    return Tensors(stores, {str(key[0]): key for key in stores})


def everything(store: Store) -> dict[Key, Store]:
    """Every tensor's key in a store → that store."""
    return dict.fromkeys(store.shapes, store)


def _plain(values: Tensor, name: str, path: Path) -> Tensor:
    if values.dtype not in FLOATS or values.layout != torch.strided:
        kind = str(values.dtype if values.layout == torch.strided else values.layout).removeprefix("torch.")
        raise UserError(f"{name} in {path} is stored as {kind}: save the checkpoint in fp32, fp16 or bf16 first.")
    values = values.to(torch.float32).contiguous()
    # NaN and infinity show in the extremes, which need no mask as large as the tensor
    extremes = [abs(float(extreme)) for extreme in torch.aminmax(values)] if values.numel() else []
    if not all(map(math.isfinite, extremes)):
        raise NotFinite(f"{name} in {path} holds NaN or infinite values: use a checkpoint from before they arose.")
    if any(extreme > LARGEST for extreme in extremes):
        raise UserError(
            f"{name} in {path} holds values up to {max(extremes):.0e}, whose squares fp32 cannot sum: "
            "use a checkpoint from before they grew."
        )
    # A mapped file may place a tensor at any address, and products round by it: measures are of the values alone.
    return values if values.data_ptr() % ALIGNED == 0 else values.clone()


def _find(directory: Path) -> list[Path]:
    """The file of weights in a directory, by its usual name or the only one of its kind, or all parts of one model."""
    for name in USUAL:
        if (directory / name).is_file():
            if adapter := next((of for of in ADAPTERS if (directory / of).is_file()), None):
                raise UserError(f"{directory} holds a model, {name}, and an adapter, {adapter}: give the path of one.")
            return [directory / name]
    names = sorted(path.name for path in directory.iterdir())
    usable = [name for name in names if not any(fnmatch(name, pattern) for pattern in OTHERS)]
    for suffixes in ((".safetensors",), PICKLES, (GGUF,)):
        found = [name for name in usable if name.endswith(suffixes)]
        refuse_ranks(directory, found)
        if parts := complete(directory, found):
            return parts
        if len(found) > 1:
            raise UserError(f"{directory} holds several files of weights ({_some(found)}): give the path of one.")
        if found:
            return [directory / found[0]]
    if any(name in ADAPTERS for name in names):
        raise UserError(f"{directory} holds an adapter, and a model is wanted here: give the one it was trained on.")
    raise no_weights(directory)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "") if names else "nothing"


def _joined(files: Sequence[Path]) -> dict[Key, Store]:
    """Every tensor of the parts of one model → the part that holds it."""
    joined: dict[Key, Store] = {}
    metadata: dict[str, Any] = {}  # of GGUF, whose first part describes the whole
    for path in files:
        store = open_store(path)
        if isinstance(own := getattr(store, "metadata", None), dict):
            metadata |= {name: value for name, value in own.items() if name not in metadata}
            own |= metadata
        found = everything(store)
        if twice := next(filter(joined.__contains__, found), None):
            raise UserError(
                f"{path} and {joined[twice].path} both hold {'.'.join(map(str, twice))}: they are slices of a "
                "tensor-parallel model; join them with the tools that wrote them, and give the whole model."
            )
        joined |= found
    return joined


def _open_index(index: Path) -> dict[Key, Store]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): index.parent / str(shard) for name, shard in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is not an index of shards ({error!r}): copy it again.") from error
    for path in sorted(set(files.values())):
        if path.parent != index.parent or path.name == ".." or not path.is_file():
            raise UserError(f"{index} names the shard {path.name}, which is not beside it: copy all shards.")
    stores = {path: open_store(path) for path in sorted(set(files.values()))}
    for name, path in files.items():
        if (name,) not in stores[path].shapes:
            raise UserError(f"{path} does not hold {name}, which its index says it does: copy the shards again.")
    return {(name,): stores[path] for name, path in files.items()}


def _open(path: Path) -> Any:
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is not a complete safetensors file (it has 0 bytes): copy or save it again.")
        return safe_open(path, framework="pt")
    except RuntimeError as error:  # torch's, where the system refuses to map so much
        raise UserError(
            f"{path} of {size(path.stat().st_size)} cannot be mapped into memory: use a machine with more, or save the "
            "model in shards."
        ) from error
    except (SafetensorError, OSError) as error:
        if path.suffix != ".safetensors":  # a safetensors file of another name is read, as in the hub's cache
            raise no_tensors(path) from error
        raise UserError(f"{path} is not a complete safetensors file ({error}): copy or save it again.") from error
