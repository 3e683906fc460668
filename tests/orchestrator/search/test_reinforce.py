"""REINFORCE over whole runs, on losses whose best settings are known: no training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.schema import SearchConfig, SearchMethod
from orchestrator.search.methods import METHODS
from orchestrator.search.reinforce import LINE, proposal
from orchestrator.search.screen import Array, design
from orchestrator.search.space import distributions
from orchestrator.search.study import Study
from tests.naming import naming

Loss = Callable[[Array], float | None]
KEYS = 5
SEARCH = SearchConfig(
    space={f"optim.{name}": "uniform(-1, 1)" for name in "abcde"},
    method=SearchMethod.reinforce, trials=41, batch=4, lengths=[1.0], seed=3,
)  # fmt: skip
SCREEN = len(design(KEYS))
BEGUN = SCREEN + len(LINE)  # trials before the pairs


def bowl(seed: int, noise: float = 0.01) -> tuple[Loss, Loss]:
    """A quadratic loss with interactions, as measured and as it is."""
    draw = np.random.default_rng(seed)
    best, mix = draw.uniform(-0.7, 0.7, KEYS), draw.normal(0, 0.3, (KEYS, KEYS))
    curved = mix @ mix.T + np.diag(draw.uniform(0.5, 1.5, KEYS))

    def true(at: Array) -> float:
        return float((at - best) @ curved @ (at - best))

    return lambda at: true(at) + float(draw.normal(0, noise)), true


def run(search: SearchConfig, loss: Loss) -> tuple[list[Array], list[float | None]]:
    """All proposals with their losses."""
    points, losses = list[Array](), list[float | None]()
    for number in range(search.trials):
        points.append(proposal(search, number, losses))
        losses.append(loss(points[-1]))
    return points, losses


@pytest.mark.parametrize("seed", range(10))
def test_it_finds_a_better_setting_than_as_many_random_ones(seed: int) -> None:
    measured, true = bowl(seed)
    points, losses = run(replace(SEARCH, seed=seed), measured)
    draw = np.random.default_rng(100 + seed)
    random = min(true(draw.uniform(-1, 1, KEYS)) for _ in points)  # without the noise that flatters it
    assert true(points[int(np.argmin(losses))]) < random


@pytest.mark.parametrize("seed", range(10))
def test_pairs_improve_on_the_best_point_of_the_line(seed: int) -> None:
    measured, true = bowl(seed)
    points, _ = run(replace(SEARCH, seed=seed, trials=BEGUN + 101), measured)
    line = [true(point) for point in points[SCREEN:BEGUN]]
    assert true(points[-1]) < min(line) < line[0]


def test_the_line_goes_down_the_clear_effects_alone() -> None:
    slopes = np.array([0.4, 0.0, -0.2, 0.0, 0.0])
    points, losses = run(SEARCH, lambda at: float(at @ slopes + 0.05 * at[1] * at[3]))
    assert np.array_equal(np.array(points[:SCREEN]), 0.5 * design(KEYS))
    direction = np.array([-1.0, 0.0, 0.5, 0.0, 0.0])
    assert np.array(points[SCREEN:BEGUN]) == pytest.approx(np.outer([0.0, 0.25, 0.5, 1.0], direction), abs=1e-12)
    # the best of the line is the first mean, about which a pair lies
    assert losses[BEGUN - 1] == min(x for x in losses[:BEGUN] if x is not None)
    steps = np.array(points[BEGUN : BEGUN + 2]) - direction
    inside = (np.abs(np.array(points[BEGUN : BEGUN + 2])) < 1).all(axis=0)
    assert inside.any()
    assert steps[0][inside] == pytest.approx(-steps[1][inside])


def test_where_no_effect_is_clear_the_line_follows_all_and_the_centre_may_win() -> None:
    points, _ = run(SEARCH, lambda at: float(at @ at + 0.001 * at.sum() + at[0] * at[1] + at[2] * at[3]))
    assert (np.array(points[BEGUN - 1]) < 0).all()
    middle = np.array(points[BEGUN : BEGUN + 2]).mean(axis=0)
    inside = (np.abs(np.array(points[BEGUN : BEGUN + 2])) < 1).all(axis=0)
    assert middle[inside] == pytest.approx(0, abs=1e-12)


def test_a_pair_with_a_failed_run_teaches_nothing_and_no_failure_ends_the_search() -> None:
    def after(*last: float | None) -> Array:
        batch = [1.0, 2.0, *last]
        return proposal(SEARCH, BEGUN + 4, [*np.linspace(0, 1, BEGUN).tolist(), *batch])

    assert np.array_equal(after(None, -100.0), after(5.0, None))
    assert not np.array_equal(after(None, -100.0), after(0.0, -100.0))
    points, _ = run(SEARCH, lambda at: None)
    assert np.array_equal(points[-1], np.zeros(KEYS))


def tilted(at: Array) -> float:
    return float((at[0] - 0.3) ** 2 + at[0] * at[1] + at[1])


def settled(study: Study, numbers: list[int], loss: Loss) -> None:
    for number in numbers:
        settings = study.trials()[number].settings
        study.tell(number, loss(np.array([float(value) for value in settings.values()])))


def test_an_interrupted_search_proposes_what_a_whole_one_does(tmp_path: Path) -> None:
    two = dict(list(SEARCH.space.items())[:2])
    search, begun = replace(SEARCH, space=two, trials=19), 12
    whole, stages = Study(tmp_path / "a", search, 100), []
    while numbers := whole.propose():
        stages.append(len(numbers))
        settled(whole, numbers, tilted)
    assert stages == [begun - len(LINE), len(LINE), 4, 2, 1]
    while numbers := (study := Study(tmp_path / "b", search, 100)).propose():
        settled(study, numbers[: max(1, len(numbers) // 2)], tilted)
    assert [one.settings for one in study.trials()] == [one.settings for one in whole.trials()]
    assert study.effects() == whole.effects()
    assert [one.key for one in whole.effects()] == [*search.space]
    assert {(one.low, one.high) for one in whole.effects()} == {(-0.5, 0.5)}
    with pytest.raises(UserError, match=naming("search.trials")):  # its last trial is the mean of its policy
        Study(tmp_path / "a", replace(search, trials=21), 100)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch": 3}, ["search.batch=3", "reinforce"]),
        ({"lengths": [0.5, 1.0]}, ["search.lengths=[0.5, 1.0]", "reinforce"]),
        ({"trials": BEGUN + 2}, ["search.trials", str(BEGUN + 3)]),
        ({"trials": BEGUN + 4}, ["search.trials", str(BEGUN + 5)]),
        ({"space": {"width": ["uniform", "ramp"]}}, ["width", "uniform(low, high)"]),
        ({"space": {"model.layers": "int(2, 4)"}}, ["model.layers", "uniform(low, high)"]),
        ({"space": {"optim.lr": "log(1e-4, 1e-2)"}}, ["optim.lr", "uniform(low, high)"]),
        ({"space": {f"optim.k{i}": "uniform(0, 1)" for i in range(16)}}, ["search.space", "16", "15"]),
    ],
)
def test_what_it_cannot_learn_from_is_refused(changed: dict[str, object], words: list[str]) -> None:
    search = replace(SEARCH, **changed)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=naming(*words)):
        METHODS[search.method].check(search, distributions(search.space))
