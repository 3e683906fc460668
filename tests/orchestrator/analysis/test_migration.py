"""Role migration counted by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from orchestrator.analysis.cells import CellResult, read_experiment
from orchestrator.analysis.migration import role_migration, role_shift, transition_counts, transitions
from orchestrator.analysis.pairs import Pair, pair_up
from orchestrator.forensics.roles.routing import STATES, state
from tests.naming import names
from tests.orchestrator.reading import reading_of

Write = Callable[..., Path]
Roles = Sequence[str]  # of one reading
ROLES = ("hub", "damper", "passthrough", "specialist", "damper/hub", "hub/specialist", "none")


def cell_of(arm: str, seed: int, readings: dict[int, Roles]) -> CellResult:
    """A cell of which only the roles are known."""
    read = {step: reading_of(roles, step=step) for step, roles in readings.items()}
    return CellResult(arm, seed, Path(), [], read, None)


def pairs_of(a: Sequence[Roles], b: Sequence[Roles]) -> list[Pair]:
    """One pair per seed, read once."""
    both = enumerate(zip(a, b, strict=True))
    return [Pair(cell_of("a", seed, {9: x}), cell_of("b", seed, {9: y}), ()) for seed, (x, y) in both]


def total_variation(a: Roles, b: Roles) -> float:
    """Between the states of one layer over the seeds of either arm."""
    shares = [[[state(role) for role in side].count(name) / len(side) for name in STATES] for side in (a, b)]
    return 0.5 * float(np.abs(np.subtract(*shares)).sum())


def test_one_row_per_layer_and_interval(experiment: Callable[..., Path]) -> None:
    rows = role_migration(read_experiment(experiment()).cell("variable", 1))
    assert [(r["step_from"], r["step"], r["layer"]) for r in rows] == [
        (a, b, layer) for a, b in ((0, 50), (50, 100)) for layer in range(4)
    ]
    assert [(r["role_from"], r["role_to"]) for r in rows[:4]] == [
        ("hub", "damper"), ("damper", "passthrough"), ("passthrough", "specialist"), ("specialist", "hub/specialist"),
    ]  # fmt: skip
    assert all(r["changed"] for r in rows)


def test_from_one_tie_to_another_is_no_change(experiment: Callable[..., Path]) -> None:
    cell = read_experiment(experiment()).cell("variable", 1)
    for reading, role in zip(cell.readings.values(), ("damper/hub", "hub/specialist", "hub"), strict=True):
        reading.layers[0] = replace(reading.layers[0], role=role)
    assert [r["changed"] for r in role_migration(cell) if r["layer"] == 0] == [False, True]


def test_transition_counts_put_every_tie_in_one_state() -> None:
    moves = [("hub", "hub"), ("hub", "damper"), ("damper/hub", "specialist"), ("damper", "hub/specialist")]
    counts = transition_counts([*moves, ("damper/hub", "none")])
    assert counts.shape == (6, 6)
    assert counts.sum() == 5
    at = {name: i for i, name in enumerate(STATES)}
    assert counts[at["hub"], at["hub"]] == counts[at["hub"], at["damper"]] == 1
    assert counts[at["tie"], at["specialist"]] == counts[at["damper"], at["tie"]] == 1
    assert counts[at["tie"], at["none"]] == 1


def test_transitions_against_cohens_kappa_and_random_dealing() -> None:
    rng = np.random.default_rng(0)
    before, after = (list(rng.choice(ROLES, 11)) for _ in range(2))
    after[:5] = before[:5]
    found = transitions("a", [cell_of("a", 0, {0: before, 10: after})])
    assert found is not None
    old, new = ([state(role) for role in roles] for roles in (before, after))
    assert found.kappa == pytest.approx(cohen_kappa_score(old, new))
    assert (found.layers, found.changed) == (11, sum(x != y for x, y in zip(old, new, strict=True)))
    dealt = [transition_counts(zip(rng.permutation(old), new, strict=True)) for _ in range(4000)]
    assert np.abs(np.mean(dealt, axis=0) - found.expected).max() < 0.08  # 4.9 standard errors of the largest
    assert found.changed_expected == pytest.approx(11 - np.trace(found.expected))


def test_transitions_of_cells_read_at_different_steps_are_pooled() -> None:
    x, y = ["hub", "hub", "damper"], ["hub", "damper", "damper/hub"]
    found = transitions(
        "a", [cell_of("a", 0, {0: x, 5: y, 9: y}), cell_of("a", 1, {3: x}), cell_of("a", 2, {2: y, 8: x})]
    )
    assert found is not None
    assert (found.layers, found.changed) == (9, 4)
    expected = sum(
        np.outer(np.sum(c, axis=1), np.sum(c, axis=0)) / 3
        for c in (transition_counts(zip(p, q, strict=True)) for p, q in ((x, y), (y, y), (y, x)))
    )
    assert np.array(found.expected) == pytest.approx(expected)
    assert np.sum(found.expected) == pytest.approx(found.layers)


@pytest.mark.parametrize(
    ("readings", "kappa"),
    [
        ({0: ["damper/hub"] * 4, 9: ["hub/specialist"] * 4}, None),  # ties alone: chance makes them alike
        ({0: ["hub"], 9: ["hub"]}, None),  # one layer can only be dealt what it has
        ({0: ["hub"], 9: ["damper"]}, 0.0),
        ({0: ["hub", "damper"], 9: ["hub", "damper"]}, 1.0),
        ({0: ["hub", "damper"], 9: ["damper", "hub"]}, -1.0),
    ],
)
def test_kappa_where_chance_says_it_all(readings: dict[int, Roles], kappa: float | None) -> None:
    found = transitions("a", [cell_of("a", 0, readings)])
    assert found is not None
    assert found.kappa == kappa


def test_nothing_read_twice_has_no_transitions() -> None:
    assert transitions("a", []) is None
    assert transitions("a", [cell_of("a", 0, {}), cell_of("a", 1, {4: ["hub"]})]) is None
    assert transitions("a", [cell_of("a", 0, {0: [], 4: []})]) is None


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 5), st.integers(1, 4), st.data())
def test_role_shift_equals_enumeration(n: int, depth: int, data: st.DataObject) -> None:
    roles = st.lists(st.lists(st.sampled_from(ROLES), min_size=depth, max_size=depth), min_size=n, max_size=n)
    a, b = data.draw(roles), data.draw(roles)
    found = role_shift("b", pairs_of(a, b))
    assert found is not None
    every = []
    for exchanged in itertools.product((False, True), repeat=n):
        x, y = ([q if e else p for p, q, e in zip(s, t, exchanged, strict=True)] for s, t in ((a, b), (b, a)))
        every.append([total_variation([r[i] for r in x], [r[i] for r in y]) for i in range(depth)])
    observed = np.array(every[0])
    assert [layer.distance for layer in found.layers] == pytest.approx(observed)
    assert found.distance == pytest.approx(observed.sum())
    largest, sums = np.max(every, axis=1), np.sum(every, axis=1)
    assert [layer.p for layer in found.layers] == pytest.approx([np.mean(largest >= o - 1e-9) for o in observed])
    assert found.p == pytest.approx(np.mean(sums >= observed.sum() - 1e-9))
    assert found.smallest_p == 2 / 2**n
    assert found.p is not None
    assert found.p >= found.smallest_p
    flat = [[state(role) for reading in side for role in reading] for side in (a, b)]
    assert found.across.same == pytest.approx(np.equal(*map(np.array, flat)).sum() / n)
    assert found.across.same == pytest.approx(np.trace(found.counts) / n)
    within = [np.mean([p == q for p, q in zip(x, y, strict=True)]) for x, y in itertools.combinations(
        [[state(role) for role in reading] for reading in a], 2)]  # fmt: skip
    assert found.within_a is not None
    assert found.within_a.same == pytest.approx(depth * np.mean(within))


def test_a_layer_that_always_differs_has_the_smallest_p() -> None:
    rest = [["passthrough", "damper/hub"] for _ in range(8)]
    found = role_shift("b", pairs_of([["hub", *r] for r in rest], [["specialist", *r] for r in rest]))
    assert found is not None
    assert [layer.p for layer in found.layers] == [2 / 2**8, 1.0, 1.0]
    assert (found.layers[0].distance, found.distance, found.p) == (1.0, 1.0, 2 / 2**8)
    assert found.layers[2].roles_a == ["damper/hub"] * 8
    assert found.across.same == 2.0


def test_many_pairs_are_exchanged_at_random() -> None:
    found = role_shift("b", pairs_of([["hub"]] * 20, [["damper"]] * 20))
    assert found is not None
    assert found.layers[0].p == found.p == found.smallest_p == 1 / 2**14


def test_one_pair_has_a_shift_but_no_p() -> None:
    found = role_shift("b", pairs_of([["hub", "damper"]], [["hub", "hub"]]))
    assert found is not None
    assert (found.p, found.smallest_p, found.within_a, found.within_b) == (None, 1.0, None, None)
    assert [(layer.distance, layer.p) for layer in found.layers] == [(0.0, None), (1.0, None)]


def test_ties_alone_are_no_shift() -> None:
    found = role_shift("b", pairs_of([["damper/hub"] * 3] * 6, [["hub/specialist"] * 3] * 6))
    assert found is not None
    assert (found.distance, found.p, found.across.kappa) == (0.0, 1.0, None)
    assert found.layers[0].roles_b == ["hub/specialist"] * 6


def test_the_newest_common_reading_is_compared() -> None:
    a = cell_of("a", 3, {0: ["hub"], 10: ["hub"], 20: ["damper"]})
    pair = Pair(a, cell_of("b", 3, {0: ["hub"], 10: ["specialist"], 30: ["damper"]}), ())
    unread = Pair(cell_of("a", 4, {0: ["hub"]}), cell_of("b", 4, {1: ["hub"]}), ())
    found = role_shift("b", [pair, unread])
    assert found is not None
    assert (found.seeds, found.step) == ([3], 10)
    assert names(found.sentence, "step 10: 4")
    assert (found.layers[0].roles_a, found.layers[0].roles_b) == (["hub"], ["specialist"])
    assert role_shift("b", [unread]) is None
    assert role_shift("c", [pair]) is None


def test_unequal_depths_have_no_shift() -> None:
    assert role_shift("b", pairs_of([["hub"]], [["hub", "damper"]])) is None
    assert role_shift("b", pairs_of([["hub"], ["hub"] * 2], [["hub"], ["hub"] * 2])) is None
    assert role_shift("b", pairs_of([[]], [[]])) is None


def test_the_results_are_plain_json(experiment: Write) -> None:
    result = read_experiment(experiment())
    pairs, _ = pair_up(result)
    for found in (transitions("uniform", result.cells[:2]), role_shift("variable", pairs)):
        assert found is not None
        assert json.loads(json.dumps(asdict(found), allow_nan=False)) == asdict(found)
