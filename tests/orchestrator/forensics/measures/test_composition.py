"""Composition by Grams against the norm of the product itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.forensics.analyzer import read_stack
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures import composition
from orchestrator.forensics.measures.composition import expected, sink, source

CPU = torch.device("cpu")


def _unit(matrix: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(matrix)
    return matrix / norm if norm else matrix


def _sides(ours: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Matrices that the embedding and each layer write, and each layer reads: [d, ·], [·, d]; all have one norm."""
    layers = range(len(ours.spec["layers"]))
    first = ours.spec["layers"][0]["width"]
    writes = [ours.tensors["model.embed_tokens.weight"].astype(np.float64)[:, :first].T]
    writes += [np.concatenate([_unit(ours.weight(i, kind)) for kind in ("o", "down")], axis=1) for i in layers]
    kinds = ("q", "k", "v", "gate", "up")
    reads = [np.concatenate([_unit(ours.folded(i, kind)) for kind in kinds]) for i in layers]
    return writes, reads


def _by_product(write: np.ndarray, read: np.ndarray) -> float:
    """‖RW‖/(‖R‖‖W‖), over the residual coordinates that both have."""
    d = min(len(write), read.shape[1])
    return float(np.linalg.norm(read[:, :d] @ write[:d]) / np.linalg.norm(read) / np.linalg.norm(write))


@pytest.mark.parametrize("widths", [(16, 16, 16), (12, 24, 16, 20), (8,)])
@pytest.mark.parametrize("in_memory", [2**24, 1])
def test_all_pairs(
    checkpoint: Callable[..., Any], widths: tuple[int, ...], in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "IN_MEMORY", in_memory)  # 1 byte: from the file
    monkeypatch.setattr(composition, "CHUNK", 1000)  # a few rows at a time
    ours = checkpoint(widths=widths)
    stack = read_stack(CheckpointModel(ours.write()), CPU)
    writes, reads = _sides(ours)
    reads.append(_unit(ours.tensors["model.embed_tokens.weight"].astype(float)[:, : widths[-1]]))  # the tied head
    by_product = [[_by_product(write, read) for read in reads] for write in writes]
    np.testing.assert_allclose(stack.compositions, by_product, rtol=1e-5)


def test_source_and_sink_are_means_above_and_below() -> None:
    matrix = np.arange(12, dtype=float).reshape(4, 3)  # writers: the embedding, 0, 1, 2
    assert source(matrix, 0) == np.mean([matrix[1, 1], matrix[1, 2]])
    assert source(matrix, 2) is None
    assert sink(matrix, 2) == np.mean([matrix[0, 2], matrix[1, 2], matrix[2, 2]])
    assert sink(matrix, 0) == matrix[0, 0]
    matrix[1, 2] = np.nan
    assert source(matrix, 0) == matrix[1, 1]


def test_what_is_zero_composes_with_nothing(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 16, 16))
    for kind in ("o", "down"):
        ours.tensors[ours.name(0, kind)][:] = 0
    stack = read_stack(CheckpointModel(ours.write()), CPU)
    assert np.isnan(stack.compositions[1]).all()
    assert np.isfinite(np.delete(stack.compositions, 1, axis=0)).all()
    assert source(stack.compositions, 0) is None


@pytest.mark.parametrize(("writer", "reader"), [(24, 24), (16, 24), (24, 16)])
def test_what_is_expected_by_chance(writer: int, reader: int) -> None:
    rng = np.random.default_rng(0)
    found = [_by_product(rng.normal(size=(writer, 64)), rng.normal(size=(64, reader))) for _ in range(200)]
    assert expected(writer, reader) == pytest.approx(np.mean(found), rel=0.005)


def test_no_embedding_writes_nothing(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 16))
    del ours.tensors["model.embed_tokens.weight"]
    stack = read_stack(CheckpointModel(ours.write()), CPU)
    assert np.isnan(stack.compositions[0]).all()
    assert sink(stack.compositions, 0) is None
    assert sink(stack.compositions, 1) == stack.compositions[1, 1]
