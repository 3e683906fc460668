"""Files written by `torch.save`: memory-mapped, and unpickled with `weights_only` so that no code runs."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.files import STEPS

HELD = 32 * 2**20  # bytes read before the file is mapped again: a mapped page stays in memory until it is unmapped
# Settings that trainings save beside their tensors: no class of these holds weights. Others may be models.
SETTINGS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|typing\.Any|(pathlib|datetime|omegaconf|numpy\.dtypes)\..+"
    r"|numpy\.dtype|numpy\.(_core|core)\.multiarray\.scalar"
)
PLAIN = (dict, list, tuple, set, str, int, float, bool, defaultdict)
NAMED = re.compile(r"GLOBAL (\S+)|function (\S+)|class '(\S+)'")  # the object that torch refused
ZIP = b"PK\x03\x04"  # first bytes of torch's format since 1.6


class LeftOut:
    """Stands for an object that is no tensor: it takes whatever made that, keeps nothing and runs nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> LeftOut:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class Archive:
    """One `.bin`, `.pt`, `.pth` or `.ckpt`: its tensors by their path through nested dicts.

    A file in the format before torch 1.6 cannot be mapped and is held in memory.
    """

    def __init__(self, path: Path) -> None:
        """Raises `UserError` where the file is broken, or holds more than tensors and plain data."""
        self.path = path
        self._mapped = _is_zip(path)
        self._read = 0
        self._contents: Any = None
        self._tensors: dict[tuple[Hashable, ...], Tensor] = {}
        self._map()
        self.shapes = {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}
        contents: Mapping[Any, Any] = self._contents if isinstance(self._contents, Mapping) else {}
        self.metadata = {name: value for name, value in contents.items() if _is_plain(value)}
        self.metadata |= {name: contents[name] for name in STEPS if isinstance(contents.get(name), int)}
        self.release()

    def load(self, key: tuple[Hashable, ...], rows: slice | None = None) -> Tensor:
        """A copy of the tensor, or of some of its rows, in the stored type."""
        if self._read > HELD:
            self.release()
        self._map()
        values = self._tensors[key] if rows is None else self._tensors[key][rows]
        self._read += values.numel() * values.element_size()
        return values.clone()

    def contents(self) -> Any:
        """Everything in the file, its tensors mapped."""
        self._map()
        return self._contents

    def release(self) -> None:
        """Unmap the file."""
        if self._mapped:
            self._contents, self._tensors, self._read = None, {}, 0

    def _map(self) -> None:
        if self._contents is not None:
            return
        try:
            self._contents = _load(self.path, self._mapped)
            self._tensors = dict(_tensors(self._contents, ()))
        except Exception as error:  # a broken pickle raises anything
            raise _refusal(self.path, str(error)) from error


def _load(path: Path, mapped: bool) -> Any:
    """The contents of the file, with `LeftOut` for every object of `SETTINGS`. Raises what torch does for others."""
    left: dict[str, type] = {f"{of.__module__}.{of.__name__}": of for of in PLAIN}  # which OmegaConf's settings name
    while True:
        try:
            with (
                warnings.catch_warnings(action="ignore"),  # the `UserError` says the same
                torch.serialization.safe_globals([(of, name) for name, of in left.items()]),
            ):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # a broken pickle raises anything
            name = _refused(str(error))
            if name in left or not SETTINGS.fullmatch(name):
                raise
            left[name] = type("LeftOut", (LeftOut,), {})  # torch knows a class by one name


def _refused(reason: str) -> str:
    """Full name of the class or function that torch refused, from its message; empty for other reasons."""
    named = NAMED.search(reason)
    return "" if named is None else next(filter(None, named.groups()))


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(len(ZIP))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again.") from error
    if not start:
        raise UserError(f"{path} is empty (0 bytes): copy or save it again.")
    return start == ZIP


def _refusal(path: Path, reason: str) -> UserError:
    if "TorchScript" in reason:
        return UserError(f"{path} is a TorchScript program, which is code: save the model's state_dict() instead.")
    if name := _refused(reason):
        return UserError(
            f"{path} holds {name} besides tensors, and loading that can run code: "
            "save only the model's state_dict(), best as safetensors."
        )
    return UserError(
        f"{path} is not a whole file of tensors as torch.save writes it, and no other pickle is loaded: "
        "copy it again, or save the model's state_dict() anew, best as safetensors."
    )


def _is_plain(value: Any) -> bool:
    """True for a dict of numbers and strings, such as the description of a model."""
    return (
        isinstance(value, Mapping) and bool(value) and not any(isinstance(v, (Tensor, Mapping)) for v in value.values())
    )


def _tensors(value: Any, key: tuple[Hashable, ...]) -> Iterator[tuple[tuple[Hashable, ...], Tensor]]:
    """Every plain tensor with its path of dict keys; subclasses, such as one rank's DTensor, are parts and left out."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _tensors(inner, (*key, name))
    elif type(value) in (Tensor, torch.nn.Parameter) and value.device.type == "cpu" and key:
        yield key, value.detach()
