"""Commitment planted by hand, and its null against every order of the readings."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import scipy

from orchestrator.forensics.reading import Reading
from orchestrator.forensics.roles.routing import ROLES
from orchestrator.forensics.trajectory.agreement import agreement, changes, likeness, scorings_of
from orchestrator.forensics.trajectory.commitment import (
    FEWEST,
    Commitment,
    commitments,
    held_by_chance,
    held_from,
    p_of,
    speed_of,
)
from tests.orchestrator.forensics.trajectory.runs import run_of, steps_of

PLANTED = ["--SSSSSSSSS", "HHHHHHHHHHH", "PPPPPPPSSSS", "SSSSSSSSSS-", "tttttttttHt", "DDDDDDDDDHD"]


def by_roles(readings: list[Reading]) -> Commitment:
    (found,) = [run for run in commitments(readings, steps_of(readings)) if run.kind == "roles"]
    return found


def test_planted_steps_of_commitment_are_found() -> None:
    run = by_roles(run_of(PLANTED))
    assert (run.layers, run.depth) == (4, 6)  # one ends with none, one with a tie
    held = [1 / 4] * 2 + [2 / 4] * 5 + [3 / 4] * 3 + [1.0]
    assert run.held == pytest.approx(held)
    assert (run.reached(0.5), run.reached(0.75), run.reached(0.9)) == (20, 70, 100)
    assert (run.at_early, run.held[run.at_early]) == (3, 0.5)


def test_the_share_that_holds_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    strips = ["".join(rng.choice(list("HDPS-"), 12)) for _ in range(7)]
    run = by_roles(run_of(strips))
    counted = [strip for strip in strips if strip[-1] != "-"]
    assert run.held == pytest.approx([np.mean([set(strip[k:]) == {strip[-1]} for strip in counted]) for k in range(12)])


def test_chance_is_the_mean_over_all_orders_of_whole_readings() -> None:
    agrees = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]], dtype=float)
    every = [held_from(agrees[[*order, 5]]) for order in permutations(range(5))]
    drawn = held_by_chance(agrees)
    assert drawn.mean(axis=0) == pytest.approx(np.mean(every, axis=0), abs=0.02)
    observed = held_from(agrees)[:-1].mean()
    exact = np.mean([of[:-1].mean() >= observed - 1e-12 for of in every])
    assert np.mean(drawn[:, :-1].mean(axis=1) >= observed - 1e-12) == pytest.approx(exact, abs=0.03)


def test_p_is_uniform_where_readings_are_exchangeable() -> None:
    def p(seed: int) -> float:
        rng = np.random.default_rng(seed)
        runs = []
        for _ in range(2):
            scores = rng.uniform(0.3, 0.7, (10, 5, len(ROLES)))
            readings = run_of(["H" * 10] * 5, scores)
            runs += [run for run in commitments(readings, steps_of(readings)) if run.kind == "scores"]
        return p_of(runs)

    found = [p(seed) for seed in range(150)]
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01


def test_p_of_labels_that_flicker_keeps_its_level_and_a_run_that_settles_is_found() -> None:
    def p(strips: list[str]) -> float:
        return by_roles(run_of(strips)).p

    rng = np.random.default_rng(1)
    found = np.array([p(["".join(rng.choice(list("HS"), 12)) for _ in range(6)]) for _ in range(200)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(found <= level) < level + 3 * np.sqrt(level * (1 - level) / found.size)
    assert p(["H" * k + "S" * (12 - k) for k in (2, 3, 4, 5)]) < 0.005
    assert p(["H" * 12, "S" * 12]) == 1.0  # what never changes settles in any order


def test_likeness_is_pearsons_r_over_layers_and_roles_less_each_roles_mean() -> None:
    rng = np.random.default_rng(2)
    scores = rng.uniform(size=(9, 5, 4))
    a, b = run_of(["H" * 9] * 5, scores)[:2]
    x, y = (of - of.mean(axis=0) for of in scores[:2])
    assert likeness(a, b) == pytest.approx(scipy.stats.pearsonr(x.ravel(), y.ravel()).statistic)
    flat = run_of(["H" * 9] * 5)
    assert likeness(a, flat[0]) == 0.0
    assert agreement(flat, "scores").shape == (9, 0)  # nothing to be like


def test_scores_commit_where_they_stay_like_the_last() -> None:
    rng = np.random.default_rng(3)
    old, new = rng.uniform(size=(2, 6, 4))
    scores = np.array([old] * 4 + [new] * 6)
    readings = run_of(["-" * 10] * 6, scores)
    (run,) = commitments(readings, steps_of(readings))  # no layer ends with a role
    assert (run.kind, run.reached(0.5), run.reached(0.9)) == ("scores", 40, 40)


def test_too_few_readings_say_nothing() -> None:
    few = run_of(["H" * (FEWEST - 1)])
    assert commitments(few, steps_of(few)) == []
    assert scorings_of(few) == ["paper"]


def test_speed_is_of_intervals_of_the_most_frequent_length() -> None:
    steps = [0, 1, 2, 4, 8, *range(10, 110, 10)]  # 10 %: the border is 30
    strip = "HSHSH" + "HDH" + "HHHHHHH"  # changes at every early reading, then twice up to 30, then never
    run = by_roles(run_of([strip, "P" * len(strip)], steps=steps))
    speed = speed_of(run.steps, run.changed)
    assert speed is not None
    assert (speed.apart, speed.before, speed.after) == (10, pytest.approx(1000 / 10 * 2 / 2 / 2), 0.0)
    assert changes(run_of(["Ht-H"]), "roles").tolist() == [1.0, 1.0, 1.0]
    lone = by_roles(run_of(["HS" * 5], steps=[2**k for k in range(10)]))
    assert speed_of(lone.steps, lone.changed) is None  # no two intervals alike on either side
