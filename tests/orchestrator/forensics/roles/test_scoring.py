"""Calibrated scoring against a second implementation of SCIENCE §3, and its edges."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from orchestrator.forensics.measures.table import MEASURES
from orchestrator.forensics.roles.routing import FEATURES, ROUTING
from orchestrator.forensics.roles.scoring import OF_HEADS, beyond, calibrated, paper
from orchestrator.forensics.roles.treatments import SHAPED, TREATMENTS, Treatment, anscombe, logarithm

LAYERS = 9
BARS = {8: 3.96, 9: 5.29}  # layers → Qn from the median beyond which one in a thousand lies
ABOVE = np.arange(LAYERS)[::-1].clip(1)  # layers above, which a source is a mean over
BELOW = np.arange(LAYERS) + 1.0  # layers below and the embedding, which a sink is a mean over


def count(x: Any) -> Any:
    return 2 * np.sqrt(x + 0.375)


def lack(x: Any) -> Any:
    return -np.log(1 - x)


# Feature → what it is read from, its transform, whether shapes matter, its least noise and its relative spread.
RULES: dict[str, tuple[str, Callable[[Any], Any] | None, bool, float, np.ndarray | None]] = {
    "effective_rank.o_fraction": ("effective_rank.o_fraction", None, True, 0, None),
    "effective_rank.down_fraction": ("effective_rank.down_fraction", None, True, 0, None),
    "balance": ("branch_balance", None, False, 0, None),
    "head_evenness": ("head_evenness", lack, True, 0, None),
    "head_diversity": ("head_diversity", None, True, 0, None),
    "coupling": ("coupling", None, True, 0, None),
    "sink_mean": ("sink_mean", np.log, True, 0, BELOW**-0.5),
    "source_mean": ("source_mean", np.log, True, 0, ABOVE**-0.5),
    "synapse_mediator": ("synapse_mediator", np.log, True, 0, np.sqrt(1 / ABOVE + 1 / BELOW) / 2),
    "down_ratio": ("write_ratio", np.log, False, 0, None),
    "depletion_fraction": ("depleted", count, True, 1, None),
    "cv": ("gain_cv", np.log, True, 0, None),
    "saturated_robust_fraction": ("gain_saturated", count, True, 1, None),
    "total_write": ("total_write", np.log, False, 0, None),
    "adjacent_alignment": ("adjacent_alignment", lack, False, 0, None),
    "unique_roles": ("ffn_cluster_evidence", None, False, 1, None),
    "super_weight_ratio": ("loudest_gain", np.log, True, 0, None),
    "gamma_concentration": ("post_norm_concentration", None, False, 0, None),
}
GROWTH = {"total_write": -1, "adjacent_alignment": 2}  # power of the stream's RMS, where all layers are alike
UNHEARD = {
    "passthrough": {"cv", "saturated_robust_fraction"},
    "specialist": {"ffn_cluster_entropy"},
}


def _rule(feature: str) -> tuple[str, Callable[[Any], Any], bool, float, np.ndarray]:
    name, transform, shaped, noise, spread = RULES.get(feature, (feature, None, False, 0, None))
    return name, transform or (lambda x: x), shaped, noise, np.ones(LAYERS) if spread is None else spread


def _random(
    seed: int, signal: float, shaped: bool
) -> tuple[list[dict[str, float | None]], list[dict[str, np.ndarray]]]:
    """Values in (0, 1), some layers far from the others, and values by chance that differ by layer."""
    rng = np.random.default_rng(seed)
    names = sorted({_rule(feature)[0] for feature in FEATURES})
    rows: list[dict[str, float | None]] = []
    for _ in range(LAYERS):
        values = {name: 0.5 + 0.02 * rng.normal() + 0.02 * signal * rng.normal() ** 3 for name in names}
        rows.append({name: float(np.clip(value, 0.01, 0.99)) for name, value in values.items()})
    for row in rows:
        row["stream_rms"] = float(rng.uniform(1, 1.05))
    rows[-1]["source_mean"] = rows[-1]["synapse_mediator"] = None  # as in every last layer
    rows[rng.integers(LAYERS)]["gain_cv"] = rows[rng.integers(LAYERS)]["write_ratio"] = None
    for row in rows:
        row["coupling"] = None
    if not shaped:
        return rows, [{} for _ in rows]
    chance = [{name: rng.uniform(0.2, 0.3, 4) for name in SHAPED if row[name] is not None} for row in rows]
    return rows, chance


def _spread(values: np.ndarray) -> float:
    """Qn by its words: sort all differences of two values, take the one whose number is (h over 2)."""
    half = len(values) // 2 + 1
    return 2.2219 * sorted(abs(a - b) for a, b in combinations(values, 2))[half * (half - 1) // 2 - 1]


def _expected(rows: list[dict[str, float | None]], chance: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Role → scores [L]."""
    z = {}
    for feature in FEATURES:
        name, transform, shaped, noise, spread = _rule(feature)
        layers = [i for i, row in enumerate(rows) if row.get(name) is not None]
        if not layers:
            continue
        y = transform(np.array([rows[i][name] for i in layers], dtype=float))
        if shaped and chance[0]:
            y = y - [np.mean(transform(chance[i][name])) for i in layers]
        own = y - np.median(y)
        d = y - GROWTH.get(feature, 0) * np.log([rows[i]["stream_rms"] for i in layers])
        d, column = d - np.median(d), np.full(len(rows), np.nan)
        bars = BARS[len(layers)] * max(_spread(d / spread[layers]), noise) * spread[layers]
        kept = [
            1 - (bar / x) ** 2 if abs(x) > bar and x * o > 0 else 0.0 for x, bar, o in zip(d, bars, own, strict=True)
        ]
        column[layers] = np.clip(d / np.sqrt(np.mean(d**2)) * kept, -3, 3)
        z[feature] = column
    votes = {
        role: [sign * z[f] for f, sign in routes.items() if f in z and f not in UNHEARD.get(role, ())]
        for role, routes in ROUTING.items()
    }
    return {role: expit(np.nanmean(of, axis=0)) for role, of in votes.items()}


@pytest.mark.parametrize("signal", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("shaped", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_definition(seed: int, shaped: bool, signal: float) -> None:
    rows, chance = _random(seed, signal, shaped)
    expected = _expected(rows, chance)
    heard = {f for role, routes in ROUTING.items() for f in routes if f not in UNHEARD.get(role, ())}
    for layer, role in enumerate(calibrated(rows, chance)):
        scores = {name: float(values[layer]) for name, values in expected.items()}
        assert role.scores == pytest.approx(scores, abs=1e-9)
        (second, runner_up), (first, leader) = sorted((score, name) for name, score in scores.items())[-2:]
        assert role.margin == pytest.approx(first - second, abs=1e-9)
        tie = "/".join(sorted((leader, runner_up)))
        assert role.role == ("none" if first <= 0.55 else leader if first - second > 0.05 else tie)
        assert role.coverage == sum(rows[layer].get(_rule(f)[0]) is not None for f in heard) / len(heard)


def test_the_seeds_above_have_roles_ties_and_none() -> None:
    given = {role.role for seed in range(4) for role in calibrated(*_random(seed, 5.0, False))}
    assert "none" in given
    assert given & set(ROUTING)


def test_the_table_of_treatments_is_the_one_typed_here() -> None:
    for feature, treatment in TREATMENTS.items():
        name, transform, shaped, noise, spread = _rule(feature)
        assert (treatment.measure or feature, treatment.shaped, treatment.noise) == (name, shaped, noise)
        assert treatment.growth == GROWTH.get(feature, 0)
        assert treatment.transform(np.array([0.3])) == pytest.approx(transform(np.array([0.3])))
        np.testing.assert_allclose(treatment.unevenness(LAYERS, False), spread)


def _alone(y: np.ndarray, treatment: Treatment, unevenness: np.ndarray) -> np.ndarray:
    """z-scores of values that do not grow with depth."""
    return beyond(y, treatment, unevenness)


def test_a_layer_that_differs_only_as_its_depth_has_it_is_nothing() -> None:
    depth, excess = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 30]), np.array([0, 5, 1, 6, 2, 7, 3, 8, 4, 9, 10]) / 10
    assert not beyond(depth + excess, Treatment(), np.ones(11), excess).any()
    excess[2] = 20.0
    assert beyond(depth + excess, Treatment(), np.ones(11), excess)[2] > 0
    depth[2] = -30.0  # it lies above its peers by what it adds, and below them in all
    assert not beyond(depth + excess, Treatment(), np.ones(11), excess).any()


def test_a_layer_within_the_spread_of_its_peers_is_nothing_and_one_beyond_is_kept() -> None:
    x = np.arange(11) / 10
    x[4], x[7] = 2.0, 60.0  # Qn is 0.67, the limit 4.5 of it
    z = _alone(x, Treatment(), np.ones(11))
    assert z[4] == 0
    assert z[7] == pytest.approx(3.0)  # cut
    assert np.count_nonzero(z) == 1


def test_the_shrinkage_by_hand() -> None:
    x = np.array([-2.0, -1, 0, 1, 2, 10])  # median 0.5; the 6th smallest of 15 differences is 2
    d = x - 0.5
    bar = 5.01 * 2.2219 * 2
    assert bar > 9.5
    assert not _alone(x, Treatment(), np.ones(6)).any()
    x[5] = d[5] = 60
    d[:5] = x[:5] - 0.5
    d[5] -= 0.5
    z = _alone(x, Treatment(), np.ones(6))
    assert z[:5].tolist() == [0] * 5
    assert z[5] == pytest.approx(d[5] / np.sqrt(np.mean(d**2)) * (1 - bar**2 / d[5] ** 2))


def test_a_count_that_no_peer_reached_is_not_remarkable_by_that() -> None:
    counts = np.array([0.0, 0, 3, 0, 0, 1, 0, 0, 0, 0, 0])
    depletion = TREATMENTS["depletion_fraction"]
    assert not _alone(depletion.transform(counts), depletion, np.ones(11)).any()
    counts[2] = 40
    assert _alone(depletion.transform(counts), depletion, np.ones(11))[2] > 2


def test_a_mean_over_few_layers_may_be_further_off() -> None:
    x = np.zeros(11)
    x[:] = np.arange(11) % 3 / 10
    x[0] = x[10] = 2.0
    uneven = np.ones(11)
    uneven[0] = 5
    z = _alone(x, Treatment(), uneven)
    assert z[0] == 0
    assert z[10] > 0


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_too_few_layers_have_no_peers(layers: int) -> None:
    assert not _alone(np.array([0.0, 0.0, 100.0])[:layers], Treatment(), np.ones(layers)).any()


def test_a_layer_without_a_value_by_chance_lacks_what_other_layers_have_one_for() -> None:
    rng = np.random.default_rng(0)
    names = ("coupling", "gain_cv", "write_ratio")
    rows: list[dict[str, float | None]] = [{name: 5 + 0.1 * rng.normal() for name in names} for _ in range(LAYERS)]
    chance = [{name: 5 + 0.1 * rng.normal(size=4) for name in names} for _ in range(LAYERS)]
    del chance[4]["coupling"]  # 5 exceeds nothing: what is left of the others' 5 is beside 0
    roles = calibrated(rows, chance)
    assert [role.role for role in roles] == ["none"] * LAYERS
    assert [role.scores["hub"] for role in roles] == [0.5] * 4 + [None] + [0.5] * (LAYERS - 5)
    rows[2]["coupling"] = 9.0
    assert calibrated(rows, chance)[2].role == "hub"


def test_constant_features_are_available_and_say_nothing() -> None:
    rows: list[dict[str, float | None]] = [{"gain_cv": 0.3, "write_ratio": 0.7} for _ in range(6)]
    for role in calibrated(rows, [{}] * 6):
        assert (role.role, role.margin, role.evidence) == ("none", 0, [])
        assert role.coverage > 0


def test_unknown_heads_add_to_no_role() -> None:
    rng = np.random.default_rng(1)
    heads, others = ("head_evenness", "head_diversity", "coupling"), ("gain_cv", "loudest_gain", "branch_balance")
    rows: list[dict[str, float | None]] = [{name: 0.5 + 0.01 * rng.normal() for name in others} for _ in range(LAYERS)]
    rows[3]["gain_cv"] = 3.0
    known = [row | dict.fromkeys(heads, 0.5) for row in rows]  # equal in all layers: available, and no evidence
    everywhere = range(LAYERS)
    for score, paper_rows in ((calibrated, {}), (paper, {"cv": 0.5, "balance": 0.5})):
        mute = [role.scores for role in score([paper_rows | row for row in rows], [{}] * LAYERS, everywhere)]
        assert mute == [role.scores for role in score([paper_rows | row for row in known], [{}] * LAYERS)]
    (more, fewer) = (calibrated(rows, [{}] * LAYERS, of)[3] for of in ((), everywhere))
    assert more.margin > fewer.margin > 0
    assert more.coverage == fewer.coverage
    assert more.evidence == fewer.evidence


def test_the_features_of_heads_are_those_that_need_their_number() -> None:
    assert {name for name in FEATURES if name in MEASURES and MEASURES[name].needs == "H"} == OF_HEADS


def test_transforms_take_zero() -> None:
    assert np.isfinite(logarithm(np.array([0.0, 1.0]))).all()
    assert np.isfinite(TREATMENTS["head_evenness"].transform(np.array([1.0]))).all()
    assert anscombe(np.array([0.0]))[0] == pytest.approx(2 * np.sqrt(3 / 8))
    counts = np.random.default_rng(0).poisson(8, 100_000).astype(float)
    assert anscombe(counts).var() == pytest.approx(1, abs=0.05)
