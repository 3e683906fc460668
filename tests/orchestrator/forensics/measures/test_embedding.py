"""The embedding as a writer, against its table taken whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures import composition
from orchestrator.forensics.measures.composition import Compositions, Side, add_embedding
from orchestrator.forensics.measures.resampling import entries_of

CPU = torch.device("cpu")
NAME = "model.embed_tokens.weight"


def _written(ours: Any, width: int) -> Compositions:
    """Compositions of the embedding with one reader, which reads every coordinate alike."""
    compositions = Compositions(width)
    add_embedding(CheckpointModel(ours.write()), compositions, CPU)
    compositions.add_read(torch.eye(width), Side(width, [entries_of(torch.eye(width))]))
    return compositions


@pytest.mark.parametrize("rows", [1, 7, 32, 100])
@pytest.mark.parametrize("block", [1, 7, 2048])
def test_its_gram_is_that_of_the_whole_table(
    checkpoint: Callable[..., Any], rows: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "ROWS", block)
    given: list[torch.Tensor] = []
    monkeypatch.setattr(Compositions, "add_write", lambda self, gram, side: given.append(gram))
    ours = checkpoint(widths=(16, 24))
    table = np.random.default_rng(0).normal(size=(rows, 24)).astype(np.float32)
    ours.tensors[NAME], ours.spec["vocab_size"] = table, rows
    add_embedding(CheckpointModel(ours.write()), Compositions(24), CPU)
    np.testing.assert_allclose(given[0].double().numpy(), table.T.astype(float) @ table.astype(float), atol=1e-4)


def test_its_energy_is_that_of_all_rows_though_the_null_sees_a_sample(
    checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "SAMPLED", 40)
    monkeypatch.setattr(composition, "ROWS", 64)
    ours = checkpoint(widths=(16, 24))
    table = np.random.default_rng(0).normal(size=(500, 24)).astype(np.float32)
    table[1] *= 30  # a loud row that the sample misses
    ours.tensors[NAME], ours.spec["vocab_size"] = table, 500
    side = _written(ours, 24).writes[0]
    (entries,) = side.parts
    assert (side.width, entries.count) == (24, 500 * 24)
    assert side.energy == pytest.approx(np.square(table.astype(float)).sum(), rel=1e-6)
    assert entries.tail_share < 0.02


def test_its_null_has_the_law_of_a_redrawn_table(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 24))
    table = np.random.default_rng(0).standard_t(4, size=(60, 24)).astype(np.float32)
    ours.tensors[NAME], ours.spec["vocab_size"] = table, 60
    side = _written(ours, 24).writes[0]
    rng = np.random.default_rng(1)
    drawn = np.concatenate([side.diagonal(rng) for _ in range(60)])
    real = np.concatenate([np.square(rng.choice(table.ravel(), table.shape)).sum(axis=0) for _ in range(60)])
    assert stats.ks_2samp(drawn, real).pvalue > 1e-3


@pytest.mark.parametrize("width", [None, 12, 40])
def test_a_table_outside_the_residual_basis_writes_nothing(checkpoint: Callable[..., Any], width: int | None) -> None:
    """Absent, narrower than the first layer (as ELECTRA's), or wider than any."""
    ours = checkpoint(widths=(16, 24))
    if width is None:
        del ours.tensors[NAME]
    else:
        ours.tensors[NAME] = np.ones((32, width), np.float32)
    compositions = _written(ours, 24)
    assert compositions.writes[0].energy == 0
    assert np.isnan(compositions.matrix()).all()


def test_a_table_of_zeros_writes_nothing(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 24))
    ours.tensors[NAME][:] = 0
    compositions = _written(ours, 24)
    assert np.isnan(compositions.matrix()).all()
    assert np.isnan(compositions.drawn(np.random.default_rng(0))).all()
