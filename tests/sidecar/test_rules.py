"""Multipliers that a rule computes from the weights, against an independent computation of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sidecar import Sidecar
from sidecar.rules import SINGULAR_VALUES, alpha_decay, has_a_tail, tail_exponent
from sidecar.units import make_units
from tests.naming import naming

BOUNDS = (0.5, 4.0)


def with_spectrum(squared: np.ndarray, seed: int = 0, columns: int | None = None) -> torch.Tensor:
    """A matrix with these squared singular values, and random singular vectors."""
    draw = np.random.default_rng(seed)
    count = len(squared)
    left, _ = np.linalg.qr(draw.standard_normal((count, count)))
    right, _ = np.linalg.qr(draw.standard_normal((columns or count, count)))
    return torch.tensor(left @ np.diag(np.sqrt(squared)) @ right.T, dtype=torch.float32)


def hill(weight: torch.Tensor) -> float:
    """α by its definition: 1 + k/Σ ln(λ_i/λ_min) over the k largest of the eigenvalues of WᵀW or WWᵀ."""
    matrix = weight.double().numpy()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    eigenvalues = np.sort(np.linalg.eigvalsh(gram))[::-1]
    tail = eigenvalues[: len(eigenvalues) - len(eigenvalues) // 2]
    return float(1 + len(tail) / np.log(tail / tail[-1]).sum())


@pytest.mark.parametrize("shape", [(64, 64), (51, 90), (90, 51)])
def test_the_exponent_is_hills_of_the_upper_half_of_the_spectrum(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert tail_exponent(weight) == pytest.approx(hill(weight), rel=1e-4)
    assert tail_exponent(3 * weight) == pytest.approx(hill(weight), rel=1e-4)


@pytest.mark.parametrize("alpha", [1.7, 2.5, 5.0])
def test_the_exponent_of_a_power_law_is_found(alpha: float) -> None:
    quantiles = (np.arange(400) + 0.5) / 400
    pareto = (1 - quantiles) ** (-1 / (alpha - 1))  # density ∝ λ^−α above 1
    assert tail_exponent(with_spectrum(pareto)) == pytest.approx(alpha, rel=0.03)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(torch.zeros(60, 60), math.nan), (torch.eye(60), math.inf), (torch.full((60, 60), math.nan), math.nan),
     (torch.empty(0, 60), math.nan), (torch.ones(60, 60).triu().fill_diagonal_(math.inf), math.nan)],
)  # fmt: skip
def test_a_matrix_without_a_tail_has_no_exponent_and_keeps_one(weight: torch.Tensor, expected: float) -> None:
    assert tail_exponent(weight) == pytest.approx(expected, nan_ok=True)
    heavy, light = (with_spectrum(np.linspace(1, 10, 60) ** power) for power in (3, 1))
    assert alpha_decay([heavy, weight, light], BOUNDS) == pytest.approx([0.5, 1.0, 4.0])
    assert alpha_decay([weight, heavy], BOUNDS) == [1.0, 1.0]


def test_the_heaviest_tail_gets_the_least_and_the_rest_lies_on_a_line() -> None:
    matrices = [with_spectrum(np.linspace(1, 10, 60) ** power, seed) for seed, power in enumerate((1, 3, 2, 1.5))]
    exponents = [hill(matrix) for matrix in matrices]
    expected = np.interp(exponents, [min(exponents), max(exponents)], BOUNDS)
    found = alpha_decay(matrices, BOUNDS)
    assert found == pytest.approx(expected.tolist(), rel=1e-4)
    assert found[1] == 0.5


def test_the_first_matrix_small_ones_and_those_outside_the_layers_are_not_judged() -> None:
    rows = [("embed", "embedding", None, 6000, 60), ("0.q", "q", 0, 3600, 60), ("0.k", "k", 0, 49 * 60, 60),
            ("0.v", "v", 0, 50 * 60, 60), ("1.q", "q", 1, 3600, 60), ("1.down", "down", 1, 3600, 49),
            ("head", "head", None, 6000, 60)]  # fmt: skip
    units = make_units(rows)
    assert SINGULAR_VALUES == 50
    assert has_a_tail(units) == [False, False, False, True, True, False, False]


def model() -> nn.Module:
    made = nn.Module()
    made.embed = nn.Embedding(70, 60)
    made.layers = nn.ModuleList(nn.Linear(60, 60, bias=False) for _ in range(4))
    for layer, power in zip(made.layers, (1, 3, 2, 1), strict=True):
        layer.weight.data = with_spectrum(np.linspace(1, 10, 60) ** power)
    return made


def ruled(made: nn.Module, **settings: Any) -> Sidecar:
    def judged(interval: int) -> torch.Tensor:
        raise AssertionError("a rule needs no held-out loss")

    options = {"lr": 1e-3, "weight_decay": 0.1, "seed": 0, "mode": "rule", "interval": 5, "bounds": {"decay": BOUNDS}}
    return Sidecar(made, judged, **options | settings)


def test_a_rule_decides_at_every_interval_without_a_held_out_loss() -> None:
    made = model()
    sidecar = ruled(made, steps=12)
    assert [step for step in range(13) if sidecar.before_step(step)] == [0, 5, 10]
    record = sidecar.record()
    assert list(record["values"]["decay"].values()) == pytest.approx(alpha_decay_by_hand(made))
    assert (record["evaluations"], record["backwards"], record["reward"]) == (0, 0, None)
    assert record["sigma"] == record["entropy"] == {}
    assert record["summary"]["decay"]["max"] == pytest.approx(4.0)


def alpha_decay_by_hand(made: nn.Module) -> list[float]:
    layers = [layer.weight for layer in made.layers]
    return [1.0, 1.0, *alpha_decay(layers[1:], BOUNDS)]


def test_a_rule_follows_the_weights_and_a_restart_goes_on_between_two_decisions() -> None:
    made = model()
    sidecar = ruled(made)
    sidecar.before_step(0)
    then = sidecar.multipliers("decay")
    made.layers[1].weight.data, made.layers[3].weight.data = made.layers[3].weight.data, made.layers[1].weight.data
    resumed = ruled(made)
    resumed.load_state_dict(sidecar.state_dict(), sidecar.tensors())
    for one in (sidecar, resumed):
        assert not one.before_step(4)
        assert one.multipliers("decay") == then
        assert one.before_step(5)
        assert one.multipliers("decay")["layers.1.weight"] == then["layers.3.weight"] == 4.0


def test_a_rules_decisions_play_back() -> None:
    sidecar = ruled(model())
    sidecar.before_step(0)
    played = ruled(model(), mode="replay", playback=[sidecar.record()])
    played.before_step(0)
    assert played.multipliers("decay") == sidecar.multipliers("decay")


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"rule": "omega_decay"}, ("rule 'omega_decay'", "alpha_decay")),
     ({"channels": ["decay", "lr_scale"]}, ("mode 'rule'", "lr_scale", "['decay']")),
     ({"coefficients": {"decay": {"depth": 1.0}}}, ("mode 'rule'", "coefficients")),
     ({"bounds": {"decay": (0.5, 2000.0)}}, ("'decay'", "0.1"))],
)  # fmt: skip
def test_a_rule_that_cannot_work_is_refused(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        ruled(model(), **settings)


def test_a_model_too_narrow_for_the_rule_is_refused() -> None:
    narrow = nn.Module()
    narrow.layers = nn.ModuleList(nn.Linear(49, 80) for _ in range(4))
    with pytest.raises(ValueError, match=naming("rule 'alpha_decay'", 50, 0)):
        ruled(narrow)


def test_mean_matched_a_rule_is_only_divided_and_what_it_does_not_judge_keeps_one() -> None:
    made = model()
    plain, matched = ruled(made), ruled(made, mean_matched=True)
    for one in (plain, matched):
        one.before_step(0)
    was, now = (list(one.multipliers("decay").values()) for one in (plain, matched))
    assert now[:2] == was[:2] == [1.0, 1.0]  # the embedding and the first matrix
    assert np.mean(now[2:]) == pytest.approx(1.0)  # equal sizes
    np.testing.assert_allclose(np.array(now[2:]) * np.mean(was[2:]), was[2:], rtol=1e-12)
    with pytest.raises(ValueError, match=naming("lr·λ·m", "8")):  # 4 / 0.5 times the mean, at worst
        ruled(made, mean_matched=True, weight_decay=20.0)
