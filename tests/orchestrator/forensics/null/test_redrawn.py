"""A drawn stack against really redrawing a checkpoint's entries: the same measures, the same law."""

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
from orchestrator.forensics.measures.table import measure
from orchestrator.forensics.null.redrawn import OTHERWISE, draws
from orchestrator.forensics.roles.scoring import MEASURED

CPU = torch.device("cpu")
DRAWS = 60
GAUSSIAN = {"head_diversity", "coupling"}  # by design


def _measured(path: Path) -> list[dict[str, float | None]]:
    stack, _ = read_stack(CheckpointModel(path), CPU)
    return [measure(layer, MEASURED) for layer in stack.layers]


@pytest.mark.parametrize("heavy", [False, True])
def test_every_routed_measure_has_the_law_of_redrawn_weights(
    checkpoint: Callable[..., Any], tmp_path: Path, heavy: bool
) -> None:
    ours = checkpoint(widths=(32, 24), heads=4, kv_heads=2, head_dim=8, ffn=96)
    if heavy:
        ours.tensors = {n: (np.sign(w) * np.abs(w) ** 1.7).astype(np.float32) for n, w in ours.tensors.items()}
    stack, compositions = read_stack(CheckpointModel(ours.write()), CPU)
    drawn = [[measure(r, MEASURED) for r in null.layers] for null in draws(stack, compositions, DRAWS, 0)]
    rng, real = np.random.default_rng(0), []
    for _ in range(DRAWS):
        tensors = {name: rng.choice(w.ravel(), w.shape) for name, w in ours.tensors.items()}
        real.append(_measured(type(ours)(tmp_path / "redrawn", ours.spec, tensors, ours.moments).write()))
    wanted = MEASURED - set(OTHERWISE) - (GAUSSIAN if heavy else set())
    checked = set()
    for layer in range(2):
        for key in wanted:
            a, b = ([rows[layer][key] for rows in table] for table in (drawn, real))
            assert (None in a) == (None in b), key
            if None not in a:
                checked.add(key)
                assert stats.ks_2samp(a, b).pvalue > 1e-4, (key, layer, np.mean(a), np.mean(b), np.std(a), np.std(b))
    assert checked == wanted


def test_moments_of_the_null_point_anywhere(checkpoint: Callable[..., Any]) -> None:
    stack, compositions = read_stack(CheckpointModel(checkpoint(widths=(16,)).write()), CPU)
    found = [null.layers[0].alignment["down"] for null in draws(stack, compositions, 400, 0)]
    size = stack.layers[0].entries["down"].count
    assert stats.kstest(np.array(found) * np.sqrt(size), "norm").pvalue > 1e-3
    stuck = [null.layers[0].stuck for null in draws(stack, compositions, 100, 0)]
    assert np.mean(stuck) == pytest.approx(stack.layers[0].stuck, rel=0.3)


def test_draws_repeat_themselves_and_differ_from_each_other(checkpoint: Callable[..., Any]) -> None:
    stack, compositions = read_stack(CheckpointModel(checkpoint(widths=(16, 16)).write()), CPU)

    def energies(seed: int) -> list[float]:
        return [r.energy["down"] for null in draws(stack, compositions, 3, seed) for r in null.layers]

    assert energies(0) == energies(0)
    assert energies(0) != energies(1)
    assert len(set(energies(0))) == 6


def test_layers_of_one_shape_share_few_spectra_and_none_within_a_resample(checkpoint: Callable[..., Any]) -> None:
    stack, compositions = read_stack(CheckpointModel(checkpoint(widths=(16, 16)).write()), CPU)
    for null in draws(stack, compositions, 4, 0):
        tops = [layer.spectra["o"][-1] for layer in null.layers]
        assert len(set(tops)) == 2
