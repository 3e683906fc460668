"""The largest entries of stored matrices against numpy, and their value by chance against simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures.extremes import expected_largest, largest_and_rms, normal_quantile


@pytest.mark.parametrize("count", [30, 300, 10_000])
def test_the_value_by_chance_is_the_mean_of_simulated_maxima(count: int) -> None:
    draws = np.abs(np.random.default_rng(0).normal(size=(4_000_000 // count, count))).max(axis=1)
    assert expected_largest(count) == pytest.approx(draws.mean(), rel=0.01)


@pytest.mark.parametrize("share", [1e-300, 0.5 / 7e9, 0.025, 0.5, 0.9, 1 - 1e-12])
def test_the_quantile_is_that_of_scipy(share: float) -> None:
    assert normal_quantile(share) == pytest.approx(ndtri(share), rel=1e-14, abs=1e-300)


def test_a_negative_entry_counts() -> None:
    assert largest_and_rms(torch.tensor([[3.0, -4.0], [0.0, 0.0]])) == pytest.approx((4.0, 2.5))


def test_every_matrix_as_it_is_stored(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 24, 16, 16))
    ours.tensors[ours.name(2, "gate")][3, 5] = -50
    rows = [layer.measures for layer in analyze(ours.write()).layers]
    for kind in ("q", "k", "v", "o", "gate", "up", "down"):
        largest = [np.abs(ours.weight(layer, kind)).max() for layer in range(4)]
        for layer, row in enumerate(rows):
            w = ours.weight(layer, kind)
            assert row[f"max_abs.{kind}"] == pytest.approx(largest[layer], rel=1e-6)
            peers = np.median(np.delete(largest, layer))
            assert row[f"max_abs.{kind}_ratio"] == pytest.approx(largest[layer] / peers, rel=1e-6)
            chance = np.abs(np.random.default_rng(0).normal(size=(500, *w.shape))).max(axis=(1, 2)).mean()
            assert row[f"max_abs.{kind}_expected"] == pytest.approx(chance * np.sqrt(np.mean(w**2)), rel=0.03)
    assert rows[2]["max_abs"] == 50


def test_one_layer_has_no_peers(checkpoint: Callable[..., Any]) -> None:
    (layer,) = analyze(checkpoint(widths=(16,)).write()).layers
    assert layer.measures["max_abs.q_ratio"] is None
    assert layer.measures["max_abs.q"] is not None
