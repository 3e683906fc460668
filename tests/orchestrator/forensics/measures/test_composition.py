"""Composition by Grams against the norm of the product itself, and its null against redrawn weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from orchestrator.forensics.analyzer import read_stack
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures import composition
from orchestrator.forensics.measures.composition import Compositions, sink, source

CPU = torch.device("cpu")


def _sides(ours: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The matrices with which the embedding and each layer write [d, ·] and each layer reads [·, d]."""
    layers = range(len(ours.spec["layers"]))
    writes = [ours.tensors["model.embed_tokens.weight"].astype(np.float64).T]
    writes += [np.concatenate([ours.weight(i, kind) for kind in ("o", "down")], axis=1) for i in layers]
    reads = [np.concatenate([ours.weight(i, kind) for kind in ("q", "k", "v", "gate", "up")]) for i in layers]
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
    stack, _ = read_stack(CheckpointModel(ours.write()), CPU)
    writes, reads = _sides(ours)
    expected = [[_by_product(write, read) for read in reads] for write in writes]
    np.testing.assert_allclose(stack.compositions, expected, rtol=1e-5)


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
    stack, drawn = read_stack(CheckpointModel(ours.write()), CPU)
    assert np.isnan(stack.compositions[1]).all()
    assert np.isfinite(np.delete(stack.compositions, 1, axis=0)).all()
    assert np.isnan(drawn.drawn(np.random.default_rng(0))[1]).all()
    assert source(stack.compositions, 0) is None


def _redrawn(ours: Any, rng: np.random.Generator, path: Path) -> Any:
    tensors = {name: rng.choice(w.ravel(), w.shape) for name, w in ours.tensors.items()}
    return type(ours)(path, ours.spec, tensors, {})


@pytest.mark.parametrize("heavy", [False, True])
def test_the_null_has_the_law_of_redrawn_weights(checkpoint: Callable[..., Any], tmp_path: Path, heavy: bool) -> None:
    ours = checkpoint(widths=(24, 32, 32), ffn=48)
    if heavy:
        ours.tensors = {n: (np.sign(w) * np.abs(w) ** 2.5).astype(np.float32) for n, w in ours.tensors.items()}
    _, compositions = read_stack(CheckpointModel(ours.write()), CPU)
    rng = np.random.default_rng(0)
    drawn = np.stack([compositions.drawn(rng) for _ in range(200)])
    real = []
    for _ in range(200):
        writes, reads = _sides(_redrawn(ours, rng, tmp_path / "redrawn"))
        real.append([[_by_product(write, read) for read in reads] for write in writes])
    for i, j in np.ndindex(drawn.shape[1:]):
        a, b = drawn[:, i, j], np.array(real)[:, i, j]
        assert stats.ks_2samp(a, b).pvalue > 1e-4, (i, j, a.mean(), b.mean(), a.std(), b.std())


def test_no_embedding_writes_nothing(checkpoint: Callable[..., Any]) -> None:
    compositions = Compositions(4)
    compositions.add_write(torch.zeros(4, 4), composition.Side(4, []))
    assert compositions.writes[0].energy == 0
    ours = checkpoint(widths=(16, 16))
    del ours.tensors["model.embed_tokens.weight"]
    stack, _ = read_stack(CheckpointModel(ours.write()), CPU)
    assert np.isnan(stack.compositions[0]).all()
    assert sink(stack.compositions, 0) is None
    assert sink(stack.compositions, 1) == stack.compositions[1, 1]
