"""Events planted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.forensics.trajectory.events import EVENTS
from tests.orchestrator.forensics.trajectory.runs import run_of

STRIPS = ["PPPSSSSS", "HHSSDDSS", "ttttSSS-", "-SSSSSSS"]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ("passthrough → specialist", [0, 1, 0, 0, 0]),
        ("to specialist", [1, 1, 1, 0, 1]),  # without the first interval and the last
        ("any change of role", [1, 1, 2, 0, 1]),
    ],
)
def test_transitions_are_counted_by_type(event: str, expected: list[int]) -> None:
    assert EVENTS[event](run_of(STRIPS)).tolist() == expected


def coupled(rises: dict[tuple[int, int, int], float], count: int = 14, depth: int = 4) -> np.ndarray:
    """Couplings with a little noise that stay where they are, but for a rise of pair (a, b) before reading k."""
    rng = np.random.default_rng(0)
    upper = np.triu(rng.uniform(0.3, 0.5, (depth, depth)), 1)
    found = np.array([upper + np.triu(1e-3 * rng.standard_normal((depth, depth)), 1) for _ in range(count)])
    found[:, 0, 1] -= 0.2  # far below the median of all pairs
    found[:, 2, 3] += 0.4
    for (a, b, k), size in rises.items():
        found[k:, a, b] += size
    return found + found.transpose(0, 2, 1)


def test_a_hub_deepens_a_pair_that_was_below_the_median() -> None:
    strips = ["H" * 14, "D" * 14, "H" * 14, "S" * 14]
    deep = EVENTS["hub deepens a head pair"]
    assert deep(run_of(strips, coupling=coupled({}))).sum() == 0
    found = deep(run_of(strips, coupling=coupled({(0, 1, 6): 0.1})))
    assert np.flatnonzero(found).tolist() == [4]  # the interval from reading 5 to 6, without the first one
    assert found.max() == 1  # layer 1 is no hub
    assert deep(run_of(strips, coupling=coupled({(2, 3, 6): 0.1}))).sum() == 0  # it was above the median
    assert deep(run_of(["D" * 14] * 4, coupling=coupled({(0, 1, 6): 0.1}))).sum() == 0
    assert deep(run_of(["H" * 14] * 4, coupling=coupled({(0, 1, 6): 0.1}))).max() == 2  # both are
    assert deep(run_of(strips, coupling=coupled({(0, 1, 6): -0.1}))).sum() == 0


def test_readings_without_couplings_have_no_such_event() -> None:
    assert EVENTS["hub deepens a head pair"](run_of(["H" * 14] * 3)).tolist() == [0] * 11
    absent = np.full((14, 3, 3), np.nan)
    nulls = run_of(["H" * 14] * 3, coupling=np.where(np.isnan(absent), None, absent))
    assert EVENTS["hub deepens a head pair"](nulls).tolist() == [0] * 11
