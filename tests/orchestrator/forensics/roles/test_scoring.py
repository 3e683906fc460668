"""Calibrated scoring against a second implementation of SCIENCE §3, and its edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from orchestrator.forensics.roles.routing import FEATURES, ROUTING
from orchestrator.forensics.roles.scoring import TREATMENTS, anscombe, calibrated, logarithm, shrunk

LAYERS, RESAMPLES = 9, 10

# How a feature enters: what it is read from, its transform, and whether its resampled mean is taken off.
RULES = {
    "balance": ("balance_per_parameter", None, False),
    "down_ratio": ("down_ratio", np.log, False),
    "total_write": ("write_gain", np.log, False),
    "gamma_concentration": ("gamma_concentration", None, False),
    "post_norm_damped_fraction": ("post_norm_damped_fraction", None, False),
    "stuck_fraction": ("stuck_fraction", None, False),
    "super_weight_ratio": ("super_weight_ratio", np.log, True),
    "depletion_fraction": ("depleted", lambda x: 2 * np.sqrt(x + 0.375), True),
    "saturated_robust_fraction": ("saturated_robust", lambda x: 2 * np.sqrt(x + 0.375), True),
}


def _rule(feature: str, probed: bool) -> tuple[str, Any, bool]:
    if probed and feature == "total_write":  # the redrawn models were probed too
        return "total_write", np.log, True
    return RULES.get(feature, (feature, None, True))


def _random(
    seed: int, signal: float, probed: bool
) -> tuple[list[dict[str, float | None]], list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(seed)
    names = sorted({_rule(feature, probed)[0] for feature in FEATURES})
    rows: list[dict[str, float | None]] = []
    chance: list[dict[str, np.ndarray]] = []
    for _ in range(LAYERS):
        centre = {name: rng.uniform(5, 6) for name in names}
        chance.append({name: centre[name] + rng.normal(size=RESAMPLES) * 0.3 for name in names})
        rows.append({name: centre[name] + 0.3 * rng.normal() + signal * rng.normal() ** 3 for name in names})
    rows = [{name: max(0.1, value or 0.0) for name, value in row.items()} for row in rows]
    rows[-1]["source_mean"] = rows[-1]["synapse_mediator"] = None  # as in every last layer
    rows[rng.integers(LAYERS)]["cv"] = rows[rng.integers(LAYERS)]["down_ratio"] = None
    for row in rows:
        row["coupling"] = None
        if not probed:
            row["adjacent_alignment"] = row["copy_density"] = None
    return rows, chance


def _expected(
    rows: list[dict[str, float | None]], chance: list[dict[str, np.ndarray]], probed: bool
) -> dict[str, np.ndarray]:
    """Role → scores [L]."""
    present = [f for f in FEATURES if any(r.get(_rule(f, probed)[0]) is not None for r in rows)]
    z = {}
    for feature in present:
        name, transform, centred = _rule(feature, probed)
        transform = transform or (lambda x: x)
        layers = [i for i, row in enumerate(rows) if row.get(name) is not None]
        x = transform(np.array([rows[i][name] for i in layers]))
        null = transform(np.array([chance[i][name] for i in layers]))  # [L, R]
        y = x - null.mean(axis=1) if centred else x
        v = np.maximum(null.var(axis=1, ddof=1), 1.0 if name in ("depleted", "saturated_robust") else 0.0)
        s2 = 0.5 * (v + v.mean()) * (1 + 1 / RESAMPLES) * (1 + np.pi / (2 * len(layers)))
        d = y - np.median(y)
        scale = np.sqrt(np.mean(d**2))
        threshold = 2 * np.log(len(rows) * len(present))
        keep = np.maximum(0, 1 - threshold * s2 / d**2) if scale else np.zeros_like(d)
        column = np.full(len(rows), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            column[layers] = np.clip(np.nan_to_num(d / scale * keep), -3, 3)
        z[feature] = column
    return {
        role: expit(np.nanmean([sign * z[f] for f, sign in routes.items() if f in z], axis=0))
        for role, routes in ROUTING.items()
    }


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("signal", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_definition(seed: int, probed: bool, signal: float) -> None:
    rows, chance = _random(seed, signal, probed)
    expected = _expected(rows, chance, probed)
    for layer, role in enumerate(calibrated(rows, chance)):
        scores = {name: float(values[layer]) for name, values in expected.items()}
        assert role.scores == pytest.approx(scores, abs=1e-9)
        (second, _), (first, leader) = sorted((score, name) for name, score in scores.items())[-2:]
        assert role.margin == pytest.approx(first - second, abs=1e-9)
        assert role.role == leader if first - second > 0.05 else "/" in role.role
        known = sum(rows[layer].get(_rule(feature, probed)[0]) is not None for feature in FEATURES)
        assert role.coverage == known / len(FEATURES)


def test_the_table_of_treatments_is_the_one_typed_here() -> None:
    for feature, treatment in TREATMENTS.items():
        name, transform, centred = RULES[feature]
        assert (treatment.measure or feature, treatment.centred) == (name, centred)
        if transform is not None:
            assert treatment.transform(np.array([2.5])) == pytest.approx(transform(np.array([2.5])))
    assert set(TREATMENTS) == set(RULES)


def test_what_the_null_reaches_is_nothing_and_what_exceeds_it_is_kept() -> None:
    noise = [np.array([-1.0, 1.0] * 5)] * 11
    x = np.zeros(11)
    x[4], x[7] = 2.0, 60.0
    z = shrunk(x, noise, TREATMENTS["stuck_fraction"], bound=2 * np.log(100))
    assert z[4] == 0
    assert z[7] == pytest.approx(3.0)  # cut
    assert np.count_nonzero(z) == 1


def test_a_count_that_no_resample_reached_is_not_remarkable_by_that() -> None:
    counts = np.array([0.0, 0, 3, 0, 0, 1, 0, 0, 0, 0, 0])
    z = shrunk(counts, [np.zeros(10)] * 11, TREATMENTS["depletion_fraction"], bound=2 * np.log(11 * 17))
    assert not z.any()
    counts[2] = 40
    assert shrunk(counts, [np.zeros(10)] * 11, TREATMENTS["depletion_fraction"], bound=2 * np.log(11 * 17))[2] > 2


def test_few_resamples_are_pooled_over_the_layers() -> None:
    noise = [np.array([-1.0, 1.0])] + [np.zeros(2)] * 10
    x = np.zeros(11)
    x[5] = 1.5  # its own resamples are equal, its peers' are not
    assert not shrunk(x, noise, TREATMENTS["stuck_fraction"], bound=10.0).any()


def test_a_feature_without_null_is_judged_by_its_spread_alone() -> None:
    x = np.array([0.0, 0, 0, 0, 1, 0, 0])
    (z,) = [shrunk(x, [np.zeros(1)] * 7, TREATMENTS["stuck_fraction"], bound=9.0)]
    assert z[4] == pytest.approx(np.sqrt(7))


def test_a_layer_without_a_null_lacks_what_other_layers_have_one_for() -> None:
    rng = np.random.default_rng(0)
    names = ("coupling", "cv", "down_ratio")
    rows: list[dict[str, float | None]] = [{name: 5 + 0.1 * rng.normal() for name in names} for _ in range(LAYERS)]
    chance = [{name: 5 + 0.1 * rng.normal(size=RESAMPLES) for name in names} for _ in range(LAYERS)]
    del chance[4]["coupling"]  # 5 exceeds nothing: what is left of the others' 5 is beside 0
    roles = calibrated(rows, chance)
    assert [role.evidence for role in roles] == [[]] * LAYERS
    assert [role.scores["hub"] for role in roles] == [0.5] * 4 + [None] + [0.5] * (LAYERS - 5)
    rows[2]["coupling"] = 9.0
    assert calibrated(rows, chance)[2].role == "hub"


def test_constant_features_are_available_and_say_nothing() -> None:
    rows: list[dict[str, float | None]] = [{"cv": 0.3, "down_ratio": 0.7} for _ in range(6)]
    chance = [{"cv": np.full(10, 0.3), "down_ratio": np.full(10, 0.7)}] * 6
    for role in calibrated(rows, chance):
        assert role.margin == 0
        assert role.evidence == []
        assert role.coverage == pytest.approx(2 / len(FEATURES))


def test_transforms_take_zero() -> None:
    assert np.isfinite(logarithm(np.array([0.0, 1.0]))).all()
    assert anscombe(np.array([0.0]))[0] == pytest.approx(2 * np.sqrt(3 / 8))
    counts = np.random.default_rng(0).poisson(8, 100_000).astype(float)
    assert anscombe(counts).var() == pytest.approx(1, abs=0.05)
