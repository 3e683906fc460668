"""Role migration counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.compare.cells import read_experiment
from orchestrator.compare.migration import STATES, role_migration, same_roles, transition_counts


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
        reading["layers"][0]["role"] = role
    assert [r["changed"] for r in role_migration(cell) if r["layer"] == 0] == [False, True]


def test_transition_counts_put_every_tie_in_one_state() -> None:
    moves = [("hub", "hub"), ("hub", "damper"), ("damper/hub", "specialist"), ("damper", "hub/specialist")]
    counts = transition_counts(moves)
    assert counts.shape == (5, 5)
    assert counts.sum() == 4
    at = {name: i for i, name in enumerate(STATES)}
    assert counts[at["hub"], at["hub"]] == counts[at["hub"], at["damper"]] == 1
    assert counts[at["tie"], at["specialist"]] == counts[at["damper"], at["tie"]] == 1


def test_same_roles_counts_single_roles_of_equal_depths(reading: Callable[..., dict]) -> None:
    a, b = reading(0, [1.0] * 5), reading(0, [1.0] * 5)
    assert same_roles(a, b) == (4, 5)  # the fifth layer is a tie in both: no role to share
    assert same_roles(a, reading(0, [1.0] * 5, shift=1)) == (0, 5)
    assert same_roles(a, reading(0, [1.0] * 6)) == (0, 0)
