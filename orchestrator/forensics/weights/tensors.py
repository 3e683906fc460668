"""Tensors on disk, read one at a time: one interface to every format of checkpoint."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.archives import Archive
from orchestrator.forensics.weights.files import GGUF, INDEX, METADATA, OTHERS, PICKLES, USUAL

Key = tuple[Hashable, ...]  # where a file keeps a tensor: ("layers.0.w",), or ("model", "layers.0.w") where nested

LARGEST = 1e15  # of a weight: sums of squares stay within fp32
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}  # other types need scales

WRAPPERS = {"model", "state_dict", "module", "model_state_dict"}  # usual keys of the weights in a larger file
OPTIMIZERS = {"optimizer", "optimizers", "optim", "optimizer_state_dict", "optim_state_dict"}
# Added to names by torch.compile, FSDP and activation checkpointing.
SEGMENTS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


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

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the file's header, without reading the values."""
        store, key = self._places[name]
        return store.shapes[key]

    def read(self, name: str) -> Tensor:
        """The tensor in float32. Raises `UserError` where it is quantised or holds NaN or infinite values."""
        store, key = self._places[name]
        return _plain(store.load(key), name, store.path)

    def rows(self, name: str, block: int) -> Iterator[Tensor]:
        """Consecutive blocks [≤ block, n] of a matrix [m, n], each as `read` would give it."""
        store, key = self._places[name]
        for start in range(0, store.shapes[key][0], block):
            yield _plain(store.load(key, slice(start, start + block)), name, store.path)

    def release(self) -> None:
        """Drop mapped and cached data; tensors can still be read."""
        for store in {id(store): store for store, _ in self._places.values()}.values():
            store.release()


class SafeFile:
    """One safetensors file, mapped for each read: a mapped page stays in memory until it is unmapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _open(path) as handle:
            self.shapes: dict[Key, tuple[int, ...]] = {
                (name,): tuple(handle.get_slice(name).get_shape())
                for name in handle.keys()  # noqa: SIM118
            }

    def load(self, key: Key, rows: slice | None = None) -> Tensor:
        try:
            with _open(self.path) as handle:
                values: Tensor = handle.get_tensor(key[0]) if rows is None else handle.get_slice(key[0])[rows]
                return values
        except SafetensorError as error:  # a type that torch lacks
            raise UserError(
                f"{key[0]} in {self.path} cannot be read ({error}): save the checkpoint in fp32, fp16 or bf16 first."
            ) from error

    def release(self) -> None:
        """Nothing is held between reads."""


def open_tensors(source: Path) -> Tensors:
    """The weights in a directory, an index of shards, a file (safetensors, torch.save'd, GGUF) or a DCP directory.

    Raises `UserError` for none, for several candidates, and for broken files.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist: give a checkpoint directory or a file of weights.")
    is_distributed = (source / METADATA).is_file() and not any((source / name).is_file() for name in USUAL)
    if source.is_dir() and not is_distributed:
        source = _find(source)
    stores = _open_index(source) if source.name.endswith(INDEX) else everything(open_store(source))
    return _model(source, stores)


def named_weights(store: Store) -> Tensors:
    """The model's weights in a store. Raises `UserError` where it has none."""
    return _model(store.path, everything(store))


def _model(source: Path, stores: Mapping[Key, Store]) -> Tensors:
    metadata = next((getattr(store, "metadata", None) for store in stores.values()), None)
    found = Tensors(stores, weights(stores), metadata)
    if not found.names:
        raise UserError(f"{source} holds no tensors of a model: give the file with its state_dict.")
    if odd := next((name for name in sorted(found.names) if not name.isprintable()), None):
        raise UserError(
            f"{source} holds a tensor named {odd!r}, which would send commands to a terminal: do not use it."
        )
    return found


def open_store(path: Path) -> Store:
    """A file of tensors, or a DCP directory. Raises `UserError` where it is broken."""
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


def weights(keys: Iterable[Key]) -> dict[str, Key]:
    """The model's weights among everything saved with them: name without wrappers → key.

    Of nested dicts, the one with the most tensors is the model; of equals, the one with a usual name.
    """
    groups: dict[Key, list[Key]] = defaultdict(list)
    for key in keys:
        if str(key[0]).partition(".")[0] not in OPTIMIZERS:
            groups[key[:-1]].append(key)
    largest = max(groups, key=lambda parent: (len(groups[parent]), bool(WRAPPERS & set(parent))), default=())
    found = groups.get(largest, [])
    return dict(zip(unwrapped([str(key[-1]) for key in found]), found, strict=True))


def unwrapped(names: list[str]) -> list[str]:
    """Names without the segments that DDP, FSDP, `torch.compile` or a surrounding module add."""
    bare = list(names)
    for segment in SEGMENTS:
        bare = [name.replace(segment, "") for name in bare]
    while bare and (prefix := _prefix(bare)):
        bare = [name.removeprefix(prefix) for name in bare]
    return bare if len(set(bare)) == len(names) else names


def _prefix(names: list[str]) -> str:
    """A redundant prefix that all names share; "model." only where a second follows it."""
    doubled = any(name.startswith("model.model.") for name in names)
    for prefix in ("module.", "model.") if doubled else ("module.",):
        if all(name.startswith(prefix) for name in names):
            return prefix
    return ""


def _plain(values: Tensor, name: str, path: Path) -> Tensor:
    if values.dtype not in FLOATS or values.layout != torch.strided:
        kind = str(values.dtype).removeprefix("torch.")
        raise UserError(f"{name} in {path} is stored as {kind}: save the checkpoint in fp32, fp16 or bf16 first.")
    values = values.to(torch.float32).contiguous()
    # NaN and infinity show in the extremes, which need no mask as large as the tensor
    extremes = [abs(float(extreme)) for extreme in torch.aminmax(values)] if values.numel() else []
    if not all(map(math.isfinite, extremes)):
        raise UserError(f"{name} in {path} holds NaN or infinite values: use a checkpoint from before they arose.")
    if any(extreme > LARGEST for extreme in extremes):
        raise UserError(
            f"{name} in {path} holds values up to {max(extremes):.0e}, whose squares fp32 cannot sum: "
            "use a checkpoint from before they grew."
        )
    return values


def _find(directory: Path) -> Path:
    """The file of weights in a directory: by its usual name, or the only one of its kind."""
    for name in USUAL:
        if (directory / name).is_file():
            return directory / name
    names = sorted(path.name for path in directory.iterdir())
    usable = [name for name in names if not any(fnmatch(name, pattern) for pattern in OTHERS)]
    for suffixes in ((".safetensors",), PICKLES, (GGUF,)):
        found = [name for name in usable if name.endswith(suffixes)]
        if len(found) > 1:
            raise UserError(f"{directory} holds several files of weights ({_some(found)}): give the path of one.")
        if found:
            return directory / found[0]
    if any(fnmatch(name, "adapter_model.*") for name in names):
        raise UserError(f"{directory} holds only adapters: merge them into their model (merge_and_unload) and save it.")
    raise UserError(f"{directory} holds no weights: looked for {USUAL[0]} or {USUAL[1]}, found {_some(names)}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "") if names else "nothing"


def _open_index(index: Path) -> dict[Key, Store]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
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
    except (SafetensorError, OSError) as error:
        if path.suffix != ".safetensors":  # a safetensors file of another name is read, as in the hub's cache
            raise UserError(
                f"{path} is not a file of tensors that can be read here: give one that ends in .safetensors, {GGUF}, "
                f"{', '.join(PICKLES)}, or a checkpoint's directory."
            ) from error
        raise UserError(f"{path} is not a complete safetensors file ({error}): copy or save it again.") from error
