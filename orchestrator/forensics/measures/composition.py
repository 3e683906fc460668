"""Composition of all pairs of layers: how much one reads of what another writes (SCIENCE §1; Elhage et al. 2021)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.resampling import Entries, entries_of, resampled_sums
from orchestrator.forensics.measures.spectrum import gram
from orchestrator.forensics.weights.memory import trim

IN_MEMORY = 2**24  # bytes of Grams held before they go to a temporary file
CHUNK = 2**23  # bytes of Grams compared at once
ROWS = 2048  # of the embedding, in memory at once
SAMPLED = 2048  # rows of the embedding, evenly spread, that the null resamples


@dataclass(frozen=True)
class Side:
    """One end of a composition: matrices over the residual stream, stacked."""

    width: int  # residual coordinates
    parts: list[Entries]  # of each matrix

    @property
    def energy(self) -> float:
        """Σ of squared entries."""
        return sum(entries.mean * entries.count for entries in self.parts)

    @property
    def variance(self) -> float:
        """Variance of an entry off the Gram's diagonal: Σ over the stacked rows of E[w²]²."""
        return sum(entries.count // self.width * entries.mean**2 for entries in self.parts)

    def diagonal(self, rng: np.random.Generator) -> np.ndarray:
        """Resampled energy of each residual coordinate: [width]."""
        total = np.zeros(self.width)
        for entries in self.parts:
            total += resampled_sums(entries, self.width, entries.count // self.width, rng)
        return total


class Compositions:
    """C(l→m) of all pairs, from one Gram per layer and side.

    ‖R W‖² = ⟨RᵀR, WWᵀ⟩, so L Grams of [d, d] per side are enough for all L² pairs. Together they are larger than a
    large model's layer: they are kept in a temporary file and compared a few rows at a time.
    """

    def __init__(self, width: int) -> None:
        """`width`: the widest layer's. Narrower Grams are padded with zeros, which does not change inner products."""
        self.width = width
        self.reads: list[Side] = []  # of layers 0, 1, …
        self.writes: list[Side] = []  # of the embedding, of layers 0, 1, …
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        self._order: list[list[Side]] = []  # for each Gram in the file, the list that holds its side

    def add_write(self, gram: Tensor, side: Side) -> None:
        """WWᵀ [d, d] of what the embedding or the next layer writes. It is scaled in place."""
        self._add(gram, side, self.writes)

    def add_read(self, gram: Tensor, side: Side) -> None:
        """RᵀR [d, d] of what the next layer reads. It is scaled in place."""
        self._add(gram, side, self.reads)

    def _add(self, gram: Tensor, side: Side, sides: list[Side]) -> None:
        self._order.append(sides)
        sides.append(side)
        beside = self.width - side.width
        scaled = gram.div_(side.energy or 1.0).float().cpu().numpy()  # keeps products within fp32
        padded = np.pad(scaled, (0, beside)) if beside else scaled
        for row in padded:
            self._file.write(row.data)

    def matrix(self) -> np.ndarray:
        """C [writers, readers]; writer 0 is the embedding. NaN where a side is zero. Call it once, at the end."""
        writers = [i for i, sides in enumerate(self._order) if sides is self.writes]
        readers = [i for i, sides in enumerate(self._order) if sides is self.reads]
        products = np.zeros((len(writers), len(readers)))
        row_bytes = 4 * self.width
        rows = max(1, CHUNK // (row_bytes * len(self._order)))
        for start in range(0, self.width, rows):
            size = min(rows, self.width - start) * row_bytes
            offsets = [(i * self.width + start) * row_bytes for i in range(len(self._order))]
            chunk = np.stack([self._read(offset, size) for offset in offsets])
            products += chunk[writers] @ chunk[readers].T
        self._file.close()
        products[[not side.energy for side in self.writes]] = np.nan
        products[:, [not side.energy for side in self.reads]] = np.nan
        return np.sqrt(np.maximum(products, 0))

    def _read(self, offset: int, size: int) -> np.ndarray:
        self._file.seek(offset)
        return np.frombuffer(self._file.read(size), np.float32)

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        """The same matrix for redrawn layers, drawn from its law (SCIENCE §3).

        ⟨A, B⟩ of two independent Grams is the sum over their diagonals, which are sums of resampled squares, plus
        twice the sum over pairs of coordinates. There entries are sums of products of independent signs: with d²/2
        pairs, a normal variable of known variance.
        """
        writes = [(side.diagonal(rng), side.variance) for side in self.writes]
        reads = [(side.diagonal(rng), side.variance) for side in self.reads]
        result = np.empty((len(writes), len(reads)))
        for i, (write, write_variance) in enumerate(writes):
            for j, (read, read_variance) in enumerate(reads):
                both = min(len(write), len(read))
                noise = np.sqrt(2.0 * both * (both - 1) * write_variance * read_variance) * rng.normal()
                product = max(write[:both] @ read[:both] + noise, 0.0)
                energy = write.sum() * read.sum()
                result[i, j] = np.sqrt(product / energy) if energy else np.nan
        return result


def add_embedding(model: CheckpointModel, compositions: Compositions, device: torch.device) -> None:
    """Add EᵀE [d, d] of the embedding table E [V, d] to `compositions`; an empty side where there is none."""
    if model.embedding_shape is None:
        width = compositions.width
        compositions.add_write(torch.zeros(width, width), Side(width, []))
        return
    rows, width = model.embedding_shape
    every = max(1, rows // SAMPLED)
    total, sample = torch.zeros(width, width, device=device), []
    for block in model.embedding(ROWS):
        on_device = block.to(device)
        total += gram(on_device)
        sample.append(on_device[::every].clone())
        trim()
    model.tensors.release()
    entries = replace(entries_of(torch.cat(sample)), count=rows * width, mean=float(total.trace()) / (rows * width))
    compositions.add_write(total, Side(width, [entries]))


def source(matrix: np.ndarray, layer: int) -> float | None:
    """Mean composition of the layer's writes into the layers above; None for the last."""
    return _mean(matrix[layer + 1, layer + 1 :])


def sink(matrix: np.ndarray, layer: int) -> float | None:
    """Mean composition of the layer's reads with the embedding and the layers below."""
    return _mean(matrix[: layer + 1, layer])


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
