"""Layers by chance against checkpoints whose entries are really drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from orchestrator.forensics.analyzer import COUNTED, expected_by_shape, read_stack
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.statistics import Stack
from orchestrator.forensics.measures.table import measure
from orchestrator.forensics.null.drawn import by_chance, drawn
from orchestrator.forensics.roles.treatments import SHAPED
from tests.orchestrator.forensics.untrained import model, spec, write

CPU = torch.device("cpu")
DRAWS, REAL = 200, 50
# Law of the entries → the least share of an expected count that is found: sums of squares follow the gamma law of
# their mean and variance, whose tail is lighter than that of heavy-tailed entries.
LAWS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, ...]], np.ndarray], float]] = {
    "gaussian": (lambda rng, shape: rng.normal(size=shape), 1.0),
    "t(4)": (lambda rng, shape: rng.standard_t(4, shape), 0.3),
}


def _stack(path: Path) -> Stack:
    return read_stack(CheckpointModel(path), CPU)


def _read(path: Path, wanted: frozenset[str]) -> list[dict[str, float | None]]:
    stack = _stack(path)
    return [measure(layer, wanted) for layer in stack.layers]


@pytest.mark.parametrize("law", LAWS)
def test_counts_are_those_of_entries_drawn_with_replacement(
    checkpoint: Callable[..., Any], tmp_path: Path, law: str
) -> None:
    draw, least = LAWS[law]
    rng = np.random.default_rng(0)
    ours = checkpoint(widths=(32, 32), ffn=200, heads=2, kv_heads=1)
    for name, tensor in ours.tensors.items():
        ours.tensors[name] = draw(rng, tensor.shape).astype(np.float32) if "mlp" in name else np.ones_like(tensor)
    stack = _stack(ours.write(optimizer=False))
    chance = by_chance(stack, COUNTED, DRAWS, 0, whole=False)
    again: list[list[dict[str, float | None]]] = []
    for _ in range(REAL):
        tensors = {n: rng.choice(w.ravel(), w.shape) if "mlp" in n else w for n, w in ours.tensors.items()}
        path = type(ours)(tmp_path / "redrawn", ours.spec, tensors, {}).write(optimizer=False)
        again.append(_read(path, frozenset(COUNTED)))
    for layer in range(2):
        for name in COUNTED:
            if name == "saturated_fixed":  # no reference
                assert name not in chance[layer]
                continue
            real, by_law = np.array([rows[layer][name] for rows in again], dtype=float), chance[layer][name]
            noise = 4 * np.sqrt(real.var() / REAL + by_law.var() / DRAWS)
            assert least * real.mean() - noise <= by_law.mean() <= real.mean() + noise, name


@pytest.mark.parametrize("profile", ["uniform", "ramp"])
def test_measures_that_depend_on_the_shape_are_on_average_those_of_untrained_layers(
    tmp_path: Path, profile: str
) -> None:
    """Each of a few seeds against many draws from one of them."""
    of, seeds = spec(layers=4, profile=profile), 24
    real = [_read(write(model(of, seed), tmp_path), SHAPED) for seed in range(seeds)]
    chance = by_chance(_stack(write(model(of, seeds), tmp_path)), SHAPED, 60, 0, whole=True)
    for layer in range(4):
        for name in SHAPED:
            values = [rows[layer][name] for rows in real]
            if None in values:
                assert set(values) == {None}
                assert name not in chance[layer]
                continue
            found, by_law = np.array(values, dtype=float), chance[layer][name]
            noise = 4 * np.sqrt(found.var(ddof=1) / seeds + by_law.var() / len(by_law))
            assert by_law.mean() == pytest.approx(found.mean(), abs=noise + 0.002 * abs(found.mean())), (name, layer)


def test_layers_of_one_shape_expect_nothing_of_it(tmp_path: Path) -> None:
    uniform, ramp = (_stack(write(model(spec(layers=4, profile=p), 0), tmp_path / p)) for p in ("uniform", "ramp"))
    assert expected_by_shape(uniform, 0) == [{}] * 4
    assert [set(layer) for layer in expected_by_shape(ramp, 0)] == [SHAPED] * 4  # the head reads the last layer


def test_draws_repeat_themselves_and_differ_from_each_other(checkpoint: Callable[..., Any]) -> None:
    stack = _stack(checkpoint(widths=(16, 16)).write())

    def sums(seed: int, whole: bool = True) -> list[float]:
        return [float(r.position_energy["up"].sum()) for null in drawn(stack, 3, seed, whole) for r in null.layers]

    assert sums(0) == sums(0) == sums(0, whole=False)
    assert not set(sums(0)) & set(sums(1))
    assert len(set(sums(0))) == 6


def test_entries_that_are_all_equal_have_sums_that_are_all_equal(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16, 16))
    for name, tensor in ours.tensors.items():
        ours.tensors[name] = np.full_like(tensor, 1.0 if "norm" in name else 1 / 3)
    for null in drawn(_stack(ours.write()), 2, 0, whole=True):
        for layer in null.layers:
            for energy in layer.position_energy.values():
                np.testing.assert_allclose(energy, 16 / 9, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 3, 32])
def test_cosines_are_those_of_random_directions(checkpoint: Callable[..., Any], width: int) -> None:
    stack = _stack(checkpoint(widths=(width,), ffn=400).write())
    (null,) = drawn(stack, 1, 0, whole=True)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4000, width))
    real = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    for cosines in null.layers[0].cosines.values():
        assert stats.ks_2samp(cosines, np.round(real, 12) if width == 1 else real).pvalue > 1e-3
