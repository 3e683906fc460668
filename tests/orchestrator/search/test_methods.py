"""Methods that look at no loss: random draws, and every combination of lists."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import yaml

from orchestrator.common.errors import UserError
from orchestrator.config.schema import (
    Config,
    Credit,
    PolicyKind,
    SearchConfig,
    SearchMethod,
    Share,
    SidecarConfig,
    SidecarMode,
)
from orchestrator.search.learned import choice
from orchestrator.search.methods import METHODS
from orchestrator.search.space import distributions
from orchestrator.search.study import Study
from tests.naming import naming

GRID = SearchConfig(
    space={"optim.lr": [0.1, 0.2, 0.3], "width": ["uniform", "ramp"]}, method=SearchMethod.grid, trials=12
)


def settings(directory: Path, search: SearchConfig, *, sign: float = 1.0) -> list[dict[str, str]]:
    study = Study(directory, search, 100)
    while numbers := study.propose():
        for number in numbers:
            study.tell(number, sign * number)
    return [one.settings for one in study.trials()]


def test_a_grid_tries_every_combination_once(tmp_path: Path) -> None:
    found = [(one["optim.lr"], one["width"]) for one in settings(tmp_path, GRID)]
    assert found == [*product(["0.1", "0.2", "0.3"], ["uniform", "ramp"])]


def test_random_draws_do_not_follow_the_losses_and_more_trials_go_on(tmp_path: Path) -> None:
    search = SearchConfig(space={"optim.lr": "uniform(0, 1)"}, method=SearchMethod.random, trials=6, batch=2)
    found = settings(tmp_path / "a", search)
    assert len({one["optim.lr"] for one in found}) == 6
    assert settings(tmp_path / "b", search, sign=-1.0) == found
    assert settings(tmp_path / "a", replace(search, trials=8))[:6] == found


def test_another_method_is_another_search(tmp_path: Path) -> None:
    settings(tmp_path, GRID)
    with pytest.raises(UserError, match=naming("search.method", "grid", "random")):
        Study(tmp_path, replace(GRID, method=SearchMethod.random), 100)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"trials": 5}, ["search.trials=5", "search.trials=6"]),
        ({"space": {"optim.lr": "uniform(0, 1)"}}, ["search.method=grid", "optim.lr"]),
    ],
)
def test_a_grid_that_cannot_be_whole_is_refused(changed: dict[str, object], words: list[str]) -> None:
    search = replace(GRID, **changed)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=naming(*words)):
        METHODS[search.method].check(search, distributions(search.space))


def test_what_was_learned_is_yaml_whatever_differs_from_the_defaults() -> None:
    kept = {"share": Share.kind, "credit": Credit.joint, "policy": PolicyKind.mlp}
    config = Config(sidecar=SidecarConfig(mode=SidecarMode.learn, channels=["decay"], **kept))
    written = yaml.safe_load(yaml.safe_dump(choice(config)))
    assert written == {"mode": "learn", "channels": ["decay"], **{key: str(value) for key, value in kept.items()}}
