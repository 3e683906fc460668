"""GGUF files, as llama.cpp writes them: tensors de-quantised as they are read, and the model's own description."""

from __future__ import annotations

import math
import struct
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType, Keys
from gguf.quants import dequantize
from torch import Tensor

from orchestrator.common.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LONGEST = 4096  # entries of an array that is kept: there are fewer layers than that, and more tokens

Key = tuple[Hashable, ...]
Type = GGUFValueType
_SCALARS = {
    Type.UINT8: "<B", Type.INT8: "<b", Type.UINT16: "<H", Type.INT16: "<h", Type.UINT32: "<I", Type.INT32: "<i",
    Type.UINT64: "<Q", Type.INT64: "<q", Type.FLOAT32: "<f", Type.FLOAT64: "<d", Type.BOOL: "<?",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: type, shape (slowest axis first, as torch has it), and first byte."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        """Entries of its first axis; 1 for a vector."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def row(self) -> int:
        """Bytes of one of its rows."""
        entries, size = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // self.rows // entries * size if self.rows else 0


class GGUF:
    """One `.gguf`: its tensors under the names they have there, and `metadata`, less its long arrays (vocabularies).

    The header is read here and not by the package's `GGUFReader`, which makes an object of every token: seconds, and
    hundreds of megabytes, that a reading of weights does not need.
    """

    def __init__(self, path: Path) -> None:
        """Raises `UserError` where the file is broken, cut short, big-endian, or of another version."""
        self.path = path
        self.metadata: dict[str, Any] = {}
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                self._tensors = self._header(_Header(file, size))
            self.shapes: dict[Key, tuple[int, ...]] = {key: of.shape for key, of in self._tensors.items()}
            cut = next((key[0] for key, of in self._tensors.items() if of.offset + of.row * of.rows > size), None)
        except UserError:
            raise
        except Exception as error:  # a broken header raises anything
            raise UserError(f"{path} is not a whole GGUF file ({error!r}): copy it again.") from error
        if cut is not None:
            raise UserError(f"{path} is not a whole GGUF file (it ends before {cut} does): copy it again.")

    def load(self, key: Key, rows: slice | None = None) -> Tensor:
        """The tensor, or some of its rows, in fp32. Raises `UserError` for a type that the gguf package cannot read."""
        of = self._tensors[key]
        start, stop, _ = (rows or slice(None)).indices(of.rows)
        raw = np.empty((max(stop - start, 0), of.row), dtype=np.uint8)
        with self.path.open("rb") as file:
            file.seek(of.offset + start * of.row)
            if file.readinto(raw.data) < raw.size:
                raise UserError(f"{self.path} is not a whole GGUF file (it ends within {key[0]}): copy it again.")
        try:
            with np.errstate(all="ignore"):  # values that overflow are refused where they are read
                values = torch.from_numpy(dequantize(raw, of.type))
        except NotImplementedError as error:
            raise UserError(
                f"{key[0]} in {self.path} is stored as {of.type.name}, which the gguf package does not de-quantise: "
                "give a file in another type, such as Q8_0."
            ) from error
        return values.reshape(len(raw), *of.shape[1:]) if len(of.shape) > 1 else values.reshape(of.shape)

    def release(self) -> None:
        """Nothing is held between reads."""

    def _header(self, header: _Header) -> dict[Key, Stored]:
        """The tensors; fills `metadata`."""
        if header.take(4) != MAGIC:
            raise UserError(f"{self.path} is not a GGUF file, whatever its name says: copy it again.")
        version = header.number("<I")
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0  # as a big-endian file looks
            cure = "run gguf's convert_endian on it" if swapped else "convert the model again with a newer llama.cpp"
            what = "is a big-endian GGUF file" if swapped else f"is a GGUF file of version {version}"
            raise UserError(f"{self.path} {what}, and versions 2 and 3, little-endian, are read: {cure}.")
        tensors, entries = header.number("<Q"), header.number("<Q")
        for _ in range(entries):
            key = header.text()  # before its value, in the file as here
            self.metadata[key] = header.value(Type(header.number("<I")))
        found: dict[Key, Stored] = {}
        for _ in range(tensors):
            name, dimensions = header.text(), header.number("<I")
            shape = tuple(reversed([header.number("<Q") for _ in range(dimensions)]))
            of = Stored(GGMLQuantizationType(header.number("<I")), shape, header.number("<Q"))
            entries, _ = GGML_QUANT_SIZES[of.type]
            if (name,) in found or (shape and shape[-1] % entries):
                raise ValueError(f"{name} of {of.type.name}, {shape}")
            found[name,] = of
        alignment = int(self.metadata.get(Keys.General.ALIGNMENT, GGUF_DEFAULT_ALIGNMENT))
        start = -(-header.at() // alignment) * alignment
        return {key: Stored(of.type, of.shape, start + of.offset) for key, of in found.items()}


class _Header:
    """The numbers, texts and arrays at the start of a file of `size` bytes. Raises `ValueError` where it ends early."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size

    def at(self) -> int:
        """Bytes read so far."""
        return self._file.tell()

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self._size or len(found := self._file.read(count)) < count:
            raise ValueError("it ends within its header")
        return found

    def number(self, form: str) -> Any:
        """The next number, in one of the forms of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        """The next text."""
        return self.take(self.number("<Q")).decode()

    def value(self, of: GGUFValueType) -> Any:
        """The next value of a type; None for an array of more than `LONGEST` entries."""
        if of in _SCALARS:
            return self.number(_SCALARS[of])
        if of == Type.STRING:
            return self.take(self.number("<Q")).decode(errors="replace")
        of, count = Type(self.number("<I")), self.number("<Q")
        if count <= LONGEST:
            return [self.value(of) for _ in range(count)]
        if of in _SCALARS:
            self._file.seek(count * struct.calcsize(_SCALARS[of]), 1)
        else:
            for _ in range(count):
                self.value(of)
        return None
