"""The screen: an orthogonal, balanced design whose foldover keeps interactions out of the main effects."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from orchestrator.search.screen import MOST, design, main_effects

FACTORS = range(1, MOST + 1)


@pytest.mark.parametrize("factors", FACTORS)
def test_the_design_is_orthogonal_balanced_and_folded_over(factors: int) -> None:
    levels = design(factors)
    rows = levels[::2]
    assert len(rows) == {0: 4, 1: 8, 2: 12, 3: 16}[factors // 4]
    assert set(np.unique(levels)) == {-1.0, 1.0}
    assert np.array_equal(rows.T @ rows, len(rows) * np.eye(factors))
    assert np.array_equal(rows.sum(axis=0), np.zeros(factors))
    assert np.array_equal(levels[1::2], -rows)


def test_the_design_of_twelve_is_the_published_one() -> None:
    first = "++-+++---+-"  # Plackett & Burman 1946, N = 12
    published = {tuple(1.0 if sign == "+" else -1.0 for sign in first[-k:] + first[:-k]) for k in range(11)}
    assert {tuple(row) for row in design(11)[::2]} == published | {(-1.0,) * 11}


@pytest.mark.parametrize("factors", FACTORS)
def test_interactions_of_two_factors_leave_the_main_effects_alone(factors: int) -> None:
    draw = np.random.default_rng(factors)
    levels, slopes = design(factors), draw.normal(size=factors)
    losses = 3.0 + levels @ slopes
    for a, b in combinations(range(factors), 2):
        losses += draw.normal() * levels[:, a] * levels[:, b]
    effects, errors = main_effects(levels, losses.tolist())
    assert effects == pytest.approx(2 * slopes)
    assert errors == pytest.approx(errors[0])


def test_an_effects_error_is_the_spread_that_noise_gives_it() -> None:
    draw, levels = np.random.default_rng(0), design(7)
    found = [main_effects(levels, draw.normal(size=len(levels)).tolist()) for _ in range(500)]
    effects, errors = (np.array(values) for values in zip(*found, strict=True))
    assert effects.std() == pytest.approx(2 / math.sqrt(len(levels)), rel=0.1)
    assert np.sqrt((errors**2).mean()) == pytest.approx(effects.std(), rel=0.1)


def test_a_run_without_a_loss_leaves_out_its_pair() -> None:
    levels, slopes = design(6), np.arange(6.0)
    losses: list[float | None] = [3.0 + float(row @ slopes) for row in levels]
    losses[4] = None
    losses[5] = 1e9  # its twin failed
    assert main_effects(levels, losses)[0] == pytest.approx(2 * slopes)


@pytest.mark.parametrize(("factors", "left"), [(3, 0), (3, 1), (11, 10)])
def test_too_few_pairs_say_nothing(factors: int, left: int) -> None:
    levels = design(factors)
    effects, errors = main_effects(levels, [1.0, 2.0] * left + [None] * (len(levels) - 2 * left))
    assert effects.tolist() == [0.0] * factors
    assert errors.tolist() == [math.inf] * factors
