"""The embedding as a writer, against its table at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.forensics.analyzer import read_stack
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures import composition
from orchestrator.forensics.measures.composition import Compositions, add_embedding
from tests.orchestrator.forensics.untrained import model, spec, write

CPU = torch.device("cpu")
NAME = "model.embed_tokens.weight"


def _written(ours: Any, width: int) -> Compositions:
    """Compositions of the embedding with one reader, which reads every coordinate alike."""
    compositions = Compositions(width)
    add_embedding(CheckpointModel(ours.write()), compositions, CPU)
    compositions.add_layer(read=torch.eye(width), write=torch.eye(width))
    return compositions


@pytest.mark.parametrize("rows", [1, 7, 32, 100])
@pytest.mark.parametrize("block", [1, 7, 2048])
def test_its_gram_is_that_of_the_first_layers_columns(
    checkpoint: Callable[..., Any], rows: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "ROWS", block)
    given: list[torch.Tensor] = []
    monkeypatch.setattr(Compositions, "add_embedding", lambda self, gram: given.append(gram))
    ours = checkpoint(widths=(16, 24))
    table = np.random.default_rng(0).normal(size=(rows, 24)).astype(np.float32)
    ours.tensors[NAME], ours.spec["vocab_size"] = table, rows
    add_embedding(CheckpointModel(ours.write()), Compositions(24), CPU)
    written = table[:, :16].astype(float)
    np.testing.assert_allclose(given[0].double().numpy(), written.T @ written, atol=1e-4)


def test_of_a_tied_table_only_the_columns_of_the_first_layer_are_written(tmp_path: Path) -> None:
    """A ramp's table is as wide as its last layer, which reads logits from it; the model adds the rest nowhere."""
    decoder = model(spec(profile="ramp", layers=3, tie_embeddings=True), 0)
    first, *others = (block.width for block in decoder.model.layers)
    table = decoder.model.embed_tokens.weight
    with torch.no_grad():
        table[:, first:] *= 10
    stack = read_stack(CheckpointModel(write(decoder, tmp_path)), CPU)
    assert table.shape[1] == others[-1] > first
    written = table.detach().double().numpy()[:, :first]
    for reader, block in enumerate(decoder.model.layers):
        attention, ffn = block.self_attn, block.mlp
        modules = (attention.q_proj, attention.k_proj, attention.v_proj, ffn.gate_proj, ffn.up_proj)
        weights = [module.weight.detach().double().numpy() for module in modules]
        read = np.concatenate([weight / np.linalg.norm(weight) for weight in weights])[:, :first]
        composed = np.linalg.norm(read @ written.T) / np.linalg.norm(written) / np.sqrt(len(weights))
        assert stack.compositions[0, reader] == pytest.approx(composed, rel=1e-5)


@pytest.mark.parametrize("width", [None, 12, 40])
def test_a_table_outside_the_residual_basis_writes_nothing(checkpoint: Callable[..., Any], width: int | None) -> None:
    """Absent, narrower than the first layer (as ELECTRA's), or wider than any."""
    ours = checkpoint(widths=(16, 24))
    if width is None:
        del ours.tensors[NAME]
    else:
        ours.tensors[NAME] = np.ones((32, width), np.float32)
    assert np.isnan(_written(ours, 24).matrix()[0]).all()


def test_a_table_of_zeros_writes_nothing(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 24))
    ours.tensors[NAME][:] = 0
    assert np.isnan(_written(ours, 24).matrix()[0]).all()
