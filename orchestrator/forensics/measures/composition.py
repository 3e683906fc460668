"""Composition of all pairs of layers: how much one reads of what another writes (SCIENCE §1; Elhage et al. 2021)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.spectrum import gram
from orchestrator.forensics.weights.memory import trim
from orchestrator.forensics.weights.tensors import NotFinite

IN_MEMORY = 2**24  # bytes of Grams held before they go to a temporary file
CHUNK = 2**23  # bytes of Grams compared at once
ROWS = 2048  # of the embedding, in memory at once


class Compositions:
    """C(l→m) of all pairs, from one Gram per layer and side.

    ‖R W‖² = ⟨RᵀR, WWᵀ⟩, so L Grams of [d, d] per side are enough for all L² pairs. Together they are larger than a
    large model's layer: they are kept in a temporary file and compared a few rows at a time.
    """

    def __init__(self, width: int) -> None:
        """`width`: the widest layer's. Narrower Grams are padded with zeros, which does not change inner products."""
        self.width = width
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        self._sides: list[tuple[str, bool]] = []  # of each Gram in the file: its side, and whether it is zero

    def add_embedding(self, gram: Tensor) -> None:
        """EᵀE of what the embedding writes, the first writer; of any scale, and zero where there is none."""
        self._add("write", gram)

    def add_layer(self, read: Tensor, write: Tensor) -> None:
        """RᵀR [d, d] of what the next layer reads, and WWᵀ of what it writes, of any scale. Scaled in place."""
        self._add("read", read)
        self._add("write", write)

    def add_head(self, gram: Tensor) -> None:
        """UᵀU of what the unembedding reads, the reader after the last layer; of any scale. Scaled in place."""
        self._add("head", gram)

    def _add(self, side: str, gram: Tensor) -> None:
        energy = float(gram.trace())
        self._sides.append((side, energy > 0))
        beside = self.width - len(gram)
        scaled = gram.div_(energy or 1.0).float().cpu().numpy()  # keeps products within fp32
        self._file.write(np.ascontiguousarray(np.pad(scaled, (0, beside)) if beside else scaled).data)

    def matrix(self) -> np.ndarray:
        """C [writers, readers]; writer 0 is the embedding, and the last reader the head, where there is one.

        NaN where a side is zero. Call it once, at the end.
        """
        writers = [i for i, (side, _) in enumerate(self._sides) if side == "write"]
        readers = [i for of in ("read", "head") for i, (side, _) in enumerate(self._sides) if side == of]
        products = np.zeros((len(writers), len(readers)))
        row_bytes = 4 * self.width
        rows = max(1, CHUNK // (row_bytes * len(self._sides)))
        for start in range(0, self.width, rows):
            size = min(rows, self.width - start) * row_bytes
            offsets = [(i * self.width + start) * row_bytes for i in range(len(self._sides))]
            chunk = np.stack([self._read(offset, size) for offset in offsets])
            products += chunk[writers] @ chunk[readers].T
        self._file.close()
        products[[not self._sides[i][1] for i in writers]] = np.nan
        products[:, [not self._sides[i][1] for i in readers]] = np.nan
        return np.sqrt(np.maximum(products, 0))

    def _read(self, offset: int, size: int) -> np.ndarray:
        self._file.seek(offset)
        return np.frombuffer(self._file.read(size), np.float32)


def add_embedding(model: CheckpointModel, compositions: Compositions, device: torch.device) -> Tensor:
    """Add EᵀE of the columns of the embedding table E [V, d] that the first layer reads; zero where there is none.

    Returns it over the columns that the first or the last layer reads, as a tied head needs it.
    """
    first, last = (model.width(index) for index in (0, len(model) - 1))
    total = _table_gram(model, model.embedding(ROWS), max(first, last), device)
    compositions.add_embedding(total[:first, :first].clone())
    return total


def add_head(model: CheckpointModel, compositions: Compositions, device: torch.device, embedding: Tensor) -> None:
    """Add UᵀU of the head U [V, d], its columns times the final norm's scale.

    Nothing where the head is not known, or not finite (a finding of `pathology.unread`). `embedding`: what
    `add_embedding` returned.
    """
    if model.head_name is None:
        return
    width = model.width(len(model) - 1)
    try:
        scale = model.final_scale()
        if model.head_name == model.stem + model.family.embed:
            total = embedding[:width, :width].clone()
        else:
            total = _table_gram(model, model.head(ROWS), width, device)
    except NotFinite:
        return
    if scale is not None:
        total *= (scale[:, None] * scale).to(total)
    compositions.add_head(total)


def _table_gram(model: CheckpointModel, blocks: Iterator[Tensor], width: int, device: torch.device) -> Tensor:
    """TᵀT of the first `width` columns of a table T, given in blocks of rows; zero beyond its own columns."""
    total = torch.zeros(width, width, device=device)
    for block in blocks:
        own = gram(block[:, :width].to(device))
        total[: len(own), : len(own)] += own
        trim()
    model.tensors.release()
    return total


def expected(writer: int, reader: int) -> float:
    """C by chance alone, of a writer and a reader of these widths: √(shared coordinates / their product)."""
    return math.sqrt(min(writer, reader) / (writer * reader))


def source(matrix: np.ndarray, layer: int) -> float | None:
    """Mean composition of the layer's writes into the layers above and the head; None where nothing reads them."""
    return _mean(matrix[layer + 1, layer + 1 :])


def sink(matrix: np.ndarray, layer: int) -> float | None:
    """Mean composition of the layer's reads with the embedding and the layers below."""
    return _mean(matrix[: layer + 1, layer])


def written_before(matrix: np.ndarray) -> np.ndarray:
    """The matrix with NaN where the writer does not come before the reader."""
    return np.where(np.triu(np.ones(matrix.shape, bool)), matrix, np.nan)


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
