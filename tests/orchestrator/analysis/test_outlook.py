"""Numbers of pairs that would decide, against the textbook's power of t and of the sign test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from orchestrator.analysis.cells import ExperimentResult, read_experiment
from orchestrator.analysis.outlook import (
    POWER,
    detectable,
    fewest,
    more_pairs,
    pairs_to_decide,
    pairs_to_move,
    power,
    seconds_of,
    seeds_to_agree,
)
from orchestrator.experiments.decision import ALPHA, FEWEST_PAIRS

NOTHING = (0.0, 0.0)


@pytest.mark.parametrize("n", [6, 10, 20])
@pytest.mark.parametrize("effect", [0.3, 0.8, 1.5])
def test_the_chance_to_find_a_difference_is_that_of_students_t(n: int, effect: float) -> None:
    theirs = scipy.stats.nct(n - 1, effect * n**0.5)
    critical = scipy.stats.t.ppf(1.0 - ALPHA / 2.0, n - 1)
    expected = theirs.sf(critical) + theirs.cdf(-critical)
    assert power(effect, 1.0, n, outside=NOTHING, within=NOTHING) == pytest.approx(expected, abs=0.04)


def test_a_tiny_spread_needs_the_fewest_pairs_and_a_large_one_none_that_is_named() -> None:
    assert pairs_to_decide([0.1, 0.1001], outside=NOTHING, within=(-0.01, 0.01)) == FEWEST_PAIRS
    assert pairs_to_decide([0.001, -0.001, 0.0], outside=NOTHING, within=(-0.01, 0.01)) == FEWEST_PAIRS
    assert pairs_to_decide([5.0, -4.9], outside=NOTHING, within=(-0.01, 0.01)) is None
    assert pairs_to_decide([0.1], outside=NOTHING, within=NOTHING) is None


def test_several_arms_share_the_error_and_need_more_pairs() -> None:
    clear = [0.1, 0.1001]
    needed = [pairs_to_decide(clear, outside=NOTHING, within=NOTHING, error=ALPHA / arms) for arms in (1, 2, 3, 9)]
    assert needed == [6, 7, 8, 10]
    assert detectable(1.0, 7, ALPHA / 3) is None


def test_the_number_of_pairs_has_the_power_it_is_named_for() -> None:
    x = np.array([0.4, 1.9, -0.3, 1.1])
    n = pairs_to_decide(x.tolist(), outside=NOTHING, within=NOTHING)
    assert n is not None
    rng, critical = np.random.default_rng(5), scipy.stats.t.ppf(1.0 - ALPHA / 2.0, n - 1)
    drawn = x.mean() + x.std(ddof=1) * rng.standard_normal((4000, n))
    t = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / n**0.5)
    assert (np.abs(t) > critical).mean() == pytest.approx(POWER, abs=0.06)


@pytest.mark.parametrize("n", [6, 12])
def test_the_detectable_difference_is_detected_with_that_power(n: int) -> None:
    least = detectable(2.0, n)
    assert least is not None
    assert power(least, 2.0, n, outside=NOTHING, within=NOTHING) == pytest.approx(POWER, abs=0.05)
    assert detectable(2.0, FEWEST_PAIRS - 1) is None


def test_a_line_that_holds_everywhere_needs_few_seeds_and_one_of_even_odds_many() -> None:
    always, even = seeds_to_agree(3, 3), seeds_to_agree(2, 4)
    assert always == FEWEST_PAIRS
    assert even is None or even > 50
    assert seeds_to_agree(0, 3) == always  # as sure that it does not hold


def test_roles_that_differ_in_every_pair_need_the_fewest() -> None:
    a, b = [["hub", "damper", "hub"]] * 4, [["damper", "hub", "hub"]] * 4
    found = pairs_to_move(a, b)
    assert found is not None
    assert FEWEST_PAIRS <= found <= 8
    assert pairs_to_move(a, a) is None
    assert pairs_to_move(a[:3], b[:3]) is None


def test_the_fewest_is_the_first_that_suffices() -> None:
    assert fewest(lambda n: float(n >= 9)) == 9
    assert fewest(lambda n: 0.0) is None


def of(root: Path, **spec: Any) -> ExperimentResult:
    """The experiment in `root`, whose cells took 100 seconds each, with these entries."""
    return replace(read_experiment(root), **spec)


def test_the_time_counts_the_cells_that_run_at_once_and_the_looks(experiment: Callable[..., Path]) -> None:
    root = experiment(seeds=(0, 1))  # two arms
    assert seconds_of(5, of(root, launcher={"parallel": 1})) == 1000.0
    assert seconds_of(5, of(root, launcher={"parallel": 4})) == 300.0, "ten cells, four at once"
    assert seconds_of(5, of(root, launcher={"parallel": 64})) == 100.0
    auto = {"auto": True, "step": 2, "max": 12}
    assert seconds_of(5, of(root, launcher={"parallel": 64}, decide=auto)) == 300.0, "looks at 2, 4 and 5"
    assert seconds_of(5, of(root, launcher={"parallel": 3}, decide=auto)) == 500.0
    assert seconds_of(5, of(root, launcher={"parallel": 64}, decide=auto | {"auto": False})) == 100.0
    for cell in root.glob("*/seed=*/metrics.jsonl"):
        cell.unlink()
    assert seconds_of(5, of(root)) is None


def test_the_sentence_has_the_pairs_the_time_and_the_override(experiment: Callable[..., Path]) -> None:
    root = experiment(seeds=(0, 2))
    one_by_one = of(root, launcher={"parallel": 1})
    assert more_pairs(3, one_by_one) == (
        "About 3 more pairs, 10 minutes here, would decide it: seeds=[0,2,1,3,4] adds them."
    )
    assert more_pairs(1, one_by_one).endswith("would decide it: seeds=[0,2,1] adds it.")
    assert more_pairs(300, one_by_one).endswith("would decide it.")
    auto = of(root, decide={"auto": True, "max": 12, "step": 1})
    assert more_pairs(20, auto).endswith("would decide it: decide.max=22 adds them.")
    assert more_pairs(10, auto).endswith("would decide it."), "they follow by themselves"
    assert more_pairs(10, auto, losses_decided=True).endswith("seeds=[0,2,1,3,4,5,6,7,8,9,10,11] adds them.")
