"""The paper's rule against a second implementation of it, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from orchestrator.forensics.roles import scoring
from orchestrator.forensics.roles.routing import FEATURES, ROUTING, Role

# SCIENCE §2, typed a second time.
TABLE = {
    "hub": "+effective_rank.o_fraction +balance +head_evenness +coupling +sink_mean +synapse_mediator",
    "damper": "+down_ratio +stuck_fraction +post_norm_damped_fraction +gamma_concentration "
    "+depletion_fraction -momentum_alignment.down -effective_rank.down_fraction -source_mean",
    "passthrough": "+adjacent_alignment -cv -saturated_robust_fraction -total_write",
    "specialist": "+cv +saturated_robust_fraction +head_diversity +unique_roles +ffn_cluster_entropy "
    "+copy_density +super_weight_ratio",
}


def paper(rows: list[dict[str, float | None]]) -> list[Role]:
    return scoring.paper(rows, [{}] * len(rows))


def _expected(rows: list[dict[str, float | None]]) -> dict[str, np.ndarray]:
    """Role → scores [L], by masked arrays over a [L, features] matrix."""
    scores = {}
    for role, text in TABLE.items():
        columns = []
        for term in text.split():
            x = np.array([np.nan if row.get(term[1:]) is None else row[term[1:]] for row in rows], dtype=float)
            if not np.isnan(x).all():
                columns.append((x - np.nanmean(x)) / np.nanstd(x) * (1 if term[0] == "+" else -1))
        scores[role] = expit(np.nanmean(np.stack(columns), axis=0))
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_scores_roles_and_margins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, float | None]] = [
        {f: float(rng.normal() * 10) if rng.random() > 0.2 else None for f in FEATURES} for _ in range(11)
    ]
    for row in rows:
        row["coupling"] = None  # a feature that no layer has
        row["cv"] = float(rng.normal())
        del row["sink_mean"]
    expected = _expected(rows)
    for layer, result in enumerate(paper(rows)):
        ranked = sorted(((expected[role][layer], role) for role in TABLE), reverse=True)
        (first, leader), (second, runner_up) = ranked[:2]
        assert result.scores == pytest.approx({role: expected[role][layer] for role in TABLE}, abs=1e-9)
        assert result.margin == pytest.approx(first - second, abs=1e-9)
        tie = "/".join(sorted([leader, runner_up]))
        assert result.role == (leader if first - second > 0.05 else tie)
        assert result.coverage == sum(rows[layer].get(f) is not None for f in FEATURES) / len(FEATURES)
        assert all(term in TABLE[leader].split() for term in result.evidence)


def test_routing_is_the_table_of_the_definitions() -> None:
    typed = {role: {t[1:]: {"+": 1, "-": -1}[t[0]] for t in text.split()} for role, text in TABLE.items()}
    assert typed == ROUTING


def test_evidence_is_what_contributes_most() -> None:
    rows = [{"cv": 0.1, "saturated_robust_fraction": 0.0, "down_ratio": 1.0, "source_mean": 0.5} for _ in range(6)]
    rows[2] |= {"cv": 0.9, "saturated_robust_fraction": 0.01}
    rows[3] |= {"source_mean": 0.1}
    rows[4] |= {"saturated_robust_fraction": 0.01}
    roles = paper(rows)
    assert (roles[2].role, roles[2].evidence) == ("specialist", ["+cv", "+saturated_robust_fraction"])
    assert (roles[3].role, roles[3].evidence) == ("damper", ["-source_mean"])


def test_constant_features_say_nothing_even_when_rounding_differs() -> None:
    rows = [{"cv": 0.3 + i * 1e-17, "down_ratio": 0.1 * 3 if i % 2 else 0.3, "balance": -0.1} for i in range(8)]
    for role in paper(rows):
        assert role.margin == 0
        assert set(role.scores.values()) == {0.5}
        assert role.evidence == []


def test_one_layer_and_identical_layers_are_ties() -> None:
    row = dict.fromkeys(FEATURES, 1.5)
    for rows in ([row], [row] * 4):
        assert {r.role for r in paper(rows)} == {"damper/hub"}


def test_a_role_without_features_has_no_score_and_cannot_win() -> None:
    roles = paper([{"cv": float(i)} for i in range(5)])
    assert [r.scores["hub"] for r in roles] == [None] * 5
    assert roles[0].role == "passthrough"
    assert roles[4].role == "specialist"
    assert roles[2].role == "passthrough/specialist"
