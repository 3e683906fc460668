"""Budgets along depth against arithmetic done here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.analysis.cells import read_experiment
from orchestrator.analysis.conservation import EQUAL, REGIONS, conservation, conserve, distance
from orchestrator.analysis.flattening import flattening, layer_p
from orchestrator.analysis.pairs import Pair, pair_up
from orchestrator.forensics.reading import centre, thirds
from tests.naming import names

Write = Callable[..., Path]


def pairs_of(root: Path) -> list[Pair]:
    return pair_up(read_experiment(root))[0]


def test_centre_is_the_scaled_mean_depth() -> None:
    assert centre(np.array([1.0, 1.0, 1.0])) == 0.5
    assert centre(np.array([0.0, 0.0, 7.0])) == 1.0
    assert centre(np.array([3.0, 0.0, 0.0, 1.0])) == pytest.approx((0 * 3 + 3 * 1) / 4 / 3)
    assert centre(np.zeros(5)) is None
    assert centre(np.array([4.0])) is None


def test_thirds_cover_every_layer_once() -> None:
    assert thirds(np.arange(11.0)) == (0 + 1 + 2 + 3, 4 + 5 + 6 + 7, 8 + 9 + 10)
    assert thirds(np.array([5.0])) == (5.0, 0.0, 0.0)


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(2, 12))
def test_distance_is_the_area_between_cumulative_budgets(data: st.DataObject, depth: int) -> None:
    counts = st.lists(st.integers(0, 50), min_size=depth, max_size=depth).filter(any)
    a, b = (np.array(data.draw(counts), dtype=float) for _ in range(2))
    area = np.abs(np.cumsum(a / a.sum()) - np.cumsum(b / b.sum()))[:-1].sum() / (depth - 1)
    assert distance(a, b) == pytest.approx(area, abs=1e-12)
    assert distance(a, np.zeros(depth)) is None


def test_rows_are_sums_over_layers(experiment: Write) -> None:
    root = experiment(budget=lambda *_: [1.0, 2.0, 3.0, 6.0], chance=0.5)
    rows = conservation(read_experiment(root).cell("uniform", 0))
    assert len(rows) == 3 * 3  # readings × references
    assert rows[0] == {
        "arm": "uniform", "seed": 0, "step": 0, "reference": "saturated_robust", "budget": 12.0, "expected": 2.0,
        "excess": 10.0, "early": 3.0, "middle": 3.0, "late": 6.0, "centre": pytest.approx((2 + 6 + 18) / 12 / 3),
    }  # fmt: skip


def test_equal_budgets_that_moved_are_conserved(experiment: Write) -> None:
    def budget(arm: str, seed: int, step: int) -> list[float]:
        early = [40.0 + seed, 20.0, 10.0, 0.0]
        return early if arm == "uniform" else [0.0, 10.0 + seed % 2, 20.0 - seed % 2, 40.0 + seed + (-1) ** seed]

    found = conserve("variable", pairs_of(experiment(seeds=range(6), budget=budget)), "saturated_robust")
    assert (found.verdict, found.ratio, found.n) == ("conserved", pytest.approx(1.0, abs=0.01), 6)
    assert found.moved_p == pytest.approx(1 / 2**5)
    assert found.centre_a is not None
    assert found.centre_b == pytest.approx(1.0 - found.centre_a, abs=0.01)


def test_a_halved_budget_is_not_conserved(experiment: Write) -> None:
    def budget(arm: str, seed: int, step: int) -> list[float]:
        return [(80.0 if arm == "uniform" else 40.0) + seed] * 4

    found = conserve("variable", pairs_of(experiment(seeds=range(7), budget=budget, chance=4.0)), "saturated_fixed")
    assert found.verdict == "not conserved"
    logs = [np.log((36 + s) / (76 + s)) for s in range(7)]
    assert found.ratio == pytest.approx(np.exp(np.mean(logs)))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.ratio < found.high < 0.8
    assert found.method == "BCa bootstrap and Student t"


def test_scattered_ratios_are_inconclusive(experiment: Write) -> None:
    def budget(arm: str, seed: int, step: int) -> list[float]:
        return [40.0 * (1.0 if arm == "uniform" else 2.0 ** (seed - 1))] * 4

    found = conserve("variable", pairs_of(experiment(seeds=(0, 1, 2), budget=budget)), "saturated_robust")
    assert (found.verdict, found.method) == ("inconclusive", "Student t")


@pytest.mark.parametrize(
    ("budget", "chance", "verdict", "words"),
    [
        ([0.0] * 4, 0.0, "no larger than chance", "chance: 0, 1"),
        ([0.0] * 4, 2.0, "no larger than chance", "97.5 % Poisson"),
        ([3.0] * 4, 3.0, "no larger than chance", "Neither budget"),
        ([30.0] * 4, None, "inconclusive", "by chance was not measured"),
        ([30.0] * 4, 1.0, "inconclusive", EQUAL),  # whole numbers agree in two seeds without saying how they scatter
        ([None] * 4, 1.0, "not measured", "No pair"),
    ],
)
def test_budgets_about_which_nothing_can_be_said(
    experiment: Write, budget: list[Any], chance: float | None, verdict: str, words: str
) -> None:
    found = conserve("variable", pairs_of(experiment(budget=lambda *_: budget, chance=chance)), "saturated_robust")
    assert found.verdict == verdict
    assert words in found.sentence


@pytest.mark.parametrize(("kept", "verdict"), [(8.5, "not conserved"), (8.0, "inconclusive"), (0.0, "inconclusive")])
@pytest.mark.parametrize("collapsed", ["uniform", "variable"])
def test_a_collapse_to_chance_is_not_hidden(experiment: Write, kept: float, verdict: str, collapsed: str) -> None:
    def budget(arm: str, seed: int, step: int) -> list[float]:
        return [kept if arm == collapsed else 200.0 + seed] * 4

    root = experiment(seeds=range(6), budget=budget, chance=8.0)
    found = conserve("variable", pairs_of(root), "saturated_robust")
    assert found.verdict == verdict
    low, high = ("the baseline", "variable") if collapsed == "uniform" else ("variable", "the baseline")
    assert names(found.sentence, f"budget of {low}", "97.5 % Poisson", f"that of {high}")
    assert names(found.sentence, "0, 1, 2") == (kept <= 8.0)


def test_a_seed_that_lost_its_budget_leaves_nothing_conserved(experiment: Write) -> None:
    def budget(arm: str, seed: int, step: int) -> list[float]:
        return [0.0 if (arm, seed) == ("variable", 2) else 50.0 + (arm == "variable") * 0.1 * seed] * 4

    found = conserve("variable", pairs_of(experiment(seeds=(0, 1, 2), budget=budget)), "saturated_robust")
    assert found.low is not None
    assert found.verdict == "inconclusive"
    assert names(found.sentence, "without a ratio", "chance: 2")


def test_one_pair_has_a_ratio_but_no_interval(experiment: Write) -> None:
    found = conserve("variable", pairs_of(experiment(seeds=(0,))), "saturated_robust")
    assert (found.ratio, found.low, found.verdict) == (1.0, None, "inconclusive")
    assert "two pairs" in found.sentence


def test_flattening_sets_equal_steps_side_by_side(experiment: Write) -> None:
    root = experiment(seeds=(0,))
    (root / "variable/seed=0/forensics/step_00000050.json").unlink()
    rows = flattening(pairs_of(root)[0])
    assert [(r["step"], r["layer"]) for r in rows] == [(s, layer) for s in (0, 100) for layer in range(4)]
    assert rows[1]["flattening"] == pytest.approx(1.0)
    assert (rows[1]["saturated_a"], rows[1]["effective_rank_o_b"]) == (10.0, 21.0)


def test_unequal_depths_are_not_set_side_by_side(experiment: Write) -> None:
    root = experiment(budget=lambda arm, *_: [9.0] * (4 if arm == "uniform" else 6))
    assert flattening(pairs_of(root)[0]) == []
    assert conserve("variable", pairs_of(root), "saturated_robust").ratio == pytest.approx(6 / 4)


def test_the_shift_of_the_centre_is_paired(experiment: Write) -> None:
    def budget(arm: str, seed: int, step: int) -> list[float]:
        if (arm, seed) == ("uniform", 6):
            return [0.0] * 4  # no centre: the pair takes no part
        return [30.0, 0.0, 0.0, 10.0 * seed + (20.0 + seed if arm == "variable" else 0.0)]

    found = conserve("variable", pairs_of(experiment(seeds=range(7), budget=budget)), "saturated_robust")
    late = {arm: np.array([budget(arm, s, 100)[3] for s in range(6)]) for arm in ("uniform", "variable")}
    shifts = late["variable"] / (30 + late["variable"]) - late["uniform"] / (30 + late["uniform"])
    assert found.centre_shift == pytest.approx(shifts.mean())
    assert found.centre_p == pytest.approx(2 / 2**6)
    assert found.centre_low is not None
    assert found.centre_high is not None
    assert 0.0 < found.centre_low < shifts.mean() < found.centre_high < 1.0


def test_a_shift_that_cannot_be_said_is_null(experiment: Write) -> None:
    found = conserve("variable", pairs_of(experiment(budget=lambda *_: [0.0] * 4)), "saturated_robust")
    assert (found.centre_shift, found.centre_low, found.centre_high, found.centre_p) == (None, None, None, None)
    found = conserve("variable", pairs_of(experiment(seeds=(0,), name="one")), "saturated_robust")
    assert (found.centre_shift, found.centre_low, found.centre_p) == (0.0, None, None)


def scattered(mean_a: float, mean_b: float) -> Callable[[str, int, int], list[float]]:
    """Budgets of whole numbers that scatter a little over the seeds, each arm in its own way."""

    def budget(arm: str, seed: int, step: int) -> list[float]:
        return [mean_a + seed % 3, mean_a, mean_a, mean_a] if arm == "uniform" else [mean_b + seed % 2] + [mean_b] * 3

    return budget


def test_a_budget_lost_in_most_seeds_is_not_decided_by_the_rest(experiment: Write) -> None:
    def budget(arm: str, seed: int, step: int) -> list[float]:
        return [20.0 + seed] * 4 if arm == "uniform" else [0.0 if seed < 4 else 40.0 + seed] * 4

    found = conserve("variable", pairs_of(experiment(seeds=range(6), budget=budget)), "saturated_robust")
    assert found.budget_b is not None and found.budget_a is not None  # noqa: PT018
    assert found.budget_b < found.budget_a
    assert found.verdict == "inconclusive"
    assert names(found.sentence, "without a ratio", "chance: 0, 1, 2, 3")


def test_no_claim_rests_on_the_layers_own_spread(experiment: Write) -> None:
    pairs = pairs_of(experiment(seeds=range(6), budget=scattered(50.0, 50.0)))
    found = {reference: conserve("variable", pairs, reference) for reference in ("saturated_robust", "saturated")}
    assert [c.verdict for c in found.values()] == ["nothing moved", "not claimed"]
    assert found["saturated"].low == found["saturated_robust"].low is not None
    assert "No claim" in found["saturated"].sentence


@pytest.mark.parametrize(
    ("spent", "verdict"), [(80.0, "nothing moved"), (76.0, "nothing moved"), (56.0, "not conserved")]
)
def test_what_chance_gives_is_left_out_of_the_ratio(experiment: Write, spent: float, verdict: str) -> None:
    """56 of 80 is 0.7 of the budget, and with 40 by chance 0.4 of what exceeds it."""
    root = experiment(seeds=range(6), budget=scattered(80.0, spent), chance=40.0)
    found = conserve("variable", pairs_of(root), "saturated_robust")
    assert found.ratio == pytest.approx((spent - 40.0) / 40.0, rel=0.02)
    assert found.verdict == verdict


def test_a_third_of_the_stack_is_judged_alone(experiment: Write) -> None:
    def budget(arm: str, seed: int, step: int) -> list[float]:
        late = 60.0 + seed % 2
        return [30.0, 30.0, 40.0 + seed, late] if arm == "uniform" else [55.0, 30.0, 15.0 + seed, late + seed % 3]

    pairs = pairs_of(experiment(seeds=range(6), budget=budget, chance=1.0))
    found = {region: conserve("variable", pairs, "saturated_robust", region) for region in REGIONS}
    assert [one.verdict for one in found.values()] == ["conserved", "not conserved", "nothing moved"]
    assert found["middle"].budget_a == pytest.approx(42.5)  # layer 2 of four: thirds of 2, 1, 1 layers
    assert found["late"].layers_a == 1.0


def test_the_layers_that_hold_the_budget_are_counted_by_entropy(experiment: Write) -> None:
    found = conserve(
        "variable",
        pairs_of(
            experiment(budget=lambda arm, *_: [11.0] * 4 if arm == "uniform" else [41.0, 1.0, 1.0, 1.0], chance=1.0)
        ),
        "saturated_robust",
    )
    assert (found.layers_a, found.layers_b) == (pytest.approx(4.0), pytest.approx(1.0))


def test_few_pairs_decide_nothing(experiment: Write) -> None:
    """The same rule as for a loss: six pairs, whatever their interval says."""

    def budget(arm: str, seed: int, step: int) -> list[float]:
        return [(80.0 if arm == "uniform" else 20.0) + 0.1 * seed] * 4

    found = conserve("variable", pairs_of(experiment(seeds=range(5), budget=budget)), "saturated_robust")
    assert found.high is not None
    assert found.high < 0.8
    assert found.verdict == "inconclusive"
    assert "6 pairs" in found.sentence


def test_one_budget_within_chance_is_never_conserved(experiment: Write) -> None:
    """By chance 480 over six pairs, of which a Poisson count may well give 523; the arms have 522 and 528."""

    def budget(arm: str, seed: int, step: int) -> list[float]:
        return [87.0 + 0.02 * (seed - 3) if arm == "uniform" else 88.0 + 0.02 * (seed % 2), 0.0, 0.0, 0.0]

    found = conserve("variable", pairs_of(experiment(seeds=range(6), budget=budget, chance=20.0)), "saturated_robust")
    assert found.low is not None
    assert found.high is not None
    assert 0.8 < found.low < found.high < 1.25
    assert found.p == pytest.approx(2 / 64)
    assert found.verdict == "inconclusive"
    assert "budget of the baseline" in found.sentence


def test_layers_read_before_training_only_give_no_verdict(experiment: Write) -> None:
    found = conserve("variable", pairs_of(experiment(read_at=(0,))), "saturated_robust")
    assert (found.step, found.verdict, found.budget_a) == (0, "not measured", None)
    assert "before training" in found.sentence


def test_seeds_not_read_at_the_newest_step_are_left_out_and_named(experiment: Write) -> None:
    root = experiment(seeds=range(6), budget=lambda arm, seed, step: [(20.0 if step < 100 else 40.0) + seed] * 4)
    for seed in range(3):
        (root / f"variable/seed={seed}/forensics/step_00000100.json").unlink()
    edit(root / "variable/seed=3/forensics/step_00000100.json", lambda m: m.update(saturated_robust=None))
    found = conserve("variable", pairs_of(root), "saturated_robust")
    assert (found.step, list(found.ratios)) == (100, [4, 5])
    assert names(found.sentence, "lack this count: 3", "step 100: 0, 1, 2")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the measures of every layer of a reading in place."""
    reading = json.loads(path.read_text())
    for layer in reading["layers"]:
        change(layer["measures"])
    path.write_text(json.dumps(reading))


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(2, 6), st.integers(1, 4))
def test_the_layers_p_equals_enumeration(data: st.DataObject, n: int, depth: int) -> None:
    """Step-down max-T by its definition, over all 2ⁿ patterns."""
    values = st.lists(st.integers(-9, 9), min_size=n, max_size=n)
    x = np.array([data.draw(values) for _ in range(depth)], dtype=float)  # [layers, n]
    under = np.abs(np.array(list(itertools.product((1, -1), repeat=n))) @ x.T)  # [2ⁿ, layers]
    seen = np.abs(x.sum(axis=1))
    alone = [np.mean(under[:, seen <= s].max(axis=1) >= s) for s in seen]
    expected = [max(p for p, other in zip(alone, seen, strict=True) if other >= s) for s in seen]
    found = layer_p(pd.DataFrame(x))
    if len(set(seen)) == depth:  # equal means share the larger p
        assert list(found.values()) == pytest.approx(expected)
    assert min(found.values()) >= 2 / 2**n - 1e-12
