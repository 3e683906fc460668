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
LAYERS, DRAWS = 4, 50
Law = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
LAWS: dict[str, Law] = {
    "gaussian": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "t(4)": lambda rng, shape: rng.standard_t(4, shape),
}


def _stack(path: Path) -> Stack:
    return read_stack(CheckpointModel(path), CPU)


def _read(path: Path, wanted: frozenset[str]) -> list[dict[str, float | None]]:
    stack = _stack(path)
    return [measure(layer, wanted) for layer in stack.layers]


def _counted(gate: np.ndarray, up: np.ndarray, down: np.ndarray, fixed: float | None = None) -> dict[str, float]:
    """`COUNTED` of a layer's matrices, from their definitions."""
    c = np.linalg.norm(gate, axis=1) * np.linalg.norm(up, axis=1)
    median, literal = np.median(c), c.mean() + 3 * c.std()
    written = np.sqrt(np.square(down) @ np.square(c))
    return {
        "saturated": (c > literal).sum(),
        "saturated_robust": (c > median + 3 * 1.4826 * np.median(np.abs(c - median))).sum(),
        "saturated_fixed": (c > (literal if fixed is None else fixed)).sum(),
        "super_weight_ratio": written.max() / np.median(written),
        "threshold": literal,
    }


def _against_independent_layers(build: Callable[..., Any], law: Law, width: int, ffn: int, layers: int) -> None:
    """Counts by chance of `LAYERS` layers under the law are on average those of `layers` others."""
    rng = np.random.default_rng(0)
    ours = build(widths=(width,) * LAYERS, ffn=ffn, heads=2, kv_heads=1)
    for name, tensor in ours.tensors.items():
        ours.tensors[name] = law(rng, tensor.shape).astype(np.float32) if "mlp" in name else np.ones_like(tensor)
    shapes = ((ffn, width), (ffn, width), (width, ffn))
    fixed = _counted(*(law(rng, shape) for shape in shapes))["threshold"]
    real = [_counted(*(law(rng, shape) for shape in shapes), fixed) for _ in range(layers)]
    stack = _stack(ours.write(optimizer=False))
    for layer in stack.layers:
        layer.threshold = fixed
    chance = by_chance(stack, COUNTED, DRAWS, 0, whole=False)
    for name in COUNTED:
        found, drawn_ones = np.array([row[name] for row in real]), np.array([layer[name] for layer in chance])
        noise = 3 * np.sqrt(found.var() / layers + drawn_ones.var() / drawn_ones.size)
        print(f"{name} {width}: {found.mean():.3f} real, {drawn_ones.mean():.3f} drawn, noise {noise:.3f}")
        assert drawn_ones.mean() == pytest.approx(found.mean(), rel=0.1, abs=noise), name


@pytest.mark.parametrize("law", LAWS)
def test_counts_are_those_of_independent_layers(checkpoint: Callable[..., Any], law: str) -> None:
    _against_independent_layers(checkpoint, LAWS[law], width=64, ffn=192, layers=100)


@pytest.mark.statistical
@pytest.mark.parametrize("law", LAWS)
def test_counts_are_those_of_independent_wide_layers(checkpoint: Callable[..., Any], law: str) -> None:
    _against_independent_layers(checkpoint, LAWS[law], width=576, ffn=768, layers=20)


def test_layers_without_a_reference_have_no_fixed_counts_by_chance(checkpoint: Callable[..., Any]) -> None:
    (chance,) = by_chance(_stack(checkpoint(widths=(16,)).write()), COUNTED, 2, 0, whole=False)
    assert set(chance) == set(COUNTED) - {"saturated_fixed"}


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
