"""What a later launch may change: it adds arms and seeds, drops arms, extends all cells, and says so in the history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.common.errors import UserError
from orchestrator.config import keys, load
from orchestrator.config.compose import compose
from orchestrator.experiments.experiment import Experiment, experiment_of
from orchestrator.experiments.run_directory import open_directory, reopen, without_dropped
from tests.naming import naming

pytestmark = pytest.mark.usefixtures("hydra")

A, B, C = "a: []", "b: ['width=ramp']", "c: ['width=x_shape']"


class Launches:
    """Launches into one directory, of which nothing is trained."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, *arms: str, declared: str = "[width]", **options: object) -> list[str]:
        """The cells that the launch would run."""
        words = [f"{key}={value}" for key, value in {"seeds": [0], **options}.items()]
        words += [f"++arms={{{', '.join(arms)}}}", f"declared={declared}", "name=x", f"root={self.root}"]
        experiment: Experiment = without_dropped(experiment_of(words, compose))
        open_directory(experiment)
        return [cell.id for cell in experiment.cells]

    @property
    def recorded(self) -> dict[str, Any]:
        return yaml.safe_load((self.root / "x/experiment.yaml").read_text())


@pytest.fixture
def launch(tmp_path: Path) -> Launches:
    return Launches(tmp_path)


def test_arms_are_added_to_the_recorded_ones(launch: Launches) -> None:
    launch(A, B)
    assert launch(A, C) == ["a/seed=0", "c/seed=0"]
    assert list(launch.recorded["arms"]) == ["a", "b", "c"]
    assert list(launch.recorded["models"]) == ["a", "b", "c"]
    assert [entry["arms"] for entry in launch.recorded["history"]] == [["a", "b"], ["a", "b", "c"]]
    assert [cell.id for cell in reopen(launch.root / "x").cells] == ["a/seed=0", "b/seed=0", "c/seed=0"]
    launch(A, "d: ['optim.lr=0.001']", declared="[width,optim.lr]")  # with the keys that it needs
    assert launch.recorded["declared"] == ["width", "optim.lr"]


def test_a_new_arm_is_compared_with_the_baseline_that_is_there(launch: Launches) -> None:
    launch(A, B)
    with pytest.raises(UserError, match=naming("baseline", "a", "c")):
        launch(C)
    with pytest.raises(UserError, match=naming("optim.lr", "'declared'")):
        launch(A, "d: ['optim.lr=0.001']")


def test_a_dropped_arm_is_left_out_until_it_is_taken_up_again(launch: Launches) -> None:
    launch(A, B, C)
    assert launch(A, B, C, dropped="[b]") == ["a/seed=0", "c/seed=0"]
    assert launch(A, B, C) == ["a/seed=0", "c/seed=0"], "as the last launch said"
    assert [cell.id for cell in reopen(launch.root / "x").cells] == ["a/seed=0", "c/seed=0"]
    assert (launch.root / "x/b/seed=0/config.yaml").is_file()
    assert launch(A, B, C, dropped="[]") == ["a/seed=0", "b/seed=0", "c/seed=0"]
    assert [entry["dropped"] for entry in launch.recorded["history"]] == [[], ["b"], []]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dropped": "[a]"}, ["dropped", "'a'", "baseline"]),
        ({"dropped": "[bb]"}, ["dropped", "'bb'", "a, b, c"]),
        ({"dropped": "[b]", "++contrasts.x": "{b: 1, c: -1}"}, ["dropped", "'b'", "contrasts"]),
        ({"dropped": "[b]", "++expect.b.late": "specialist"}, ["dropped", "'b'", "expect"]),
    ],
)
def test_what_cannot_be_dropped_is_refused(launch: Launches, options: dict[str, str], named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)):
        launch(A, B, C, **options)


LATE = "late: ['optim=wsd','branch={arm: b, step: 400}']"
REPLAYED = "played: ['sidecar=decay','sidecar.mode=replay','needs=learned']"


@pytest.mark.parametrize(
    ("arms", "dropped", "named"),
    [
        ((A, B, LATE), "b", ["dropped", "'b'", "branch.arm=b", "'late'"]),
        ((A, "learned: ['sidecar=decay']", REPLAYED), "learned", ["dropped", "'learned'", "needs=learned", "'played'"]),
    ],
)
def test_an_arm_that_another_needs_is_dropped_with_it_alone(
    launch: Launches, arms: tuple[str, ...], dropped: str, named: list[str]
) -> None:
    """Also where this launch does not name the other, which has its cells there."""
    declared, other = "[width,optim,branch,sidecar,needs]", arms[-1].partition(":")[0]
    first = (A, arms[1].replace("width=ramp", "width=uniform")) if dropped == "b" else arms[:2]
    arms = (*first, arms[-1])
    launch(*arms, declared=declared)
    for some in (arms, first):
        with pytest.raises(UserError, match=naming(*named)):
            launch(*some, declared=declared, dropped=f"[{dropped}]")
    assert launch(*arms, declared=declared, dropped=f"[{dropped},{other}]") == ["a/seed=0"]


def test_the_first_command_works_after_an_arm_with_more_declared_keys_was_added(launch: Launches) -> None:
    extra, other = "d: ['optim.lr=0.001']", "e: ['optim.clip=0.5']"
    launch(A, B)
    launch(A, B, extra, declared="[width,optim.lr]")
    launch(A, B)
    assert launch.recorded["declared"] == ["width", "optim.lr"]
    launch(A, other, declared="[optim.clip,width]")  # a third, which knows the first alone
    assert launch.recorded["declared"] == ["width", "optim.lr", "optim.clip"]
    launch(A, B, extra, declared="[width,optim.lr]")
    before = launch.recorded
    with pytest.raises(UserError, match=naming("declared", "optim.eps")):
        launch(A, B, declared="[width,optim.eps]")  # no arm is new
    with pytest.raises(UserError, match=naming("declared", "width", "optim.lr")):
        launch(A, extra, other, declared="[optim.lr,optim.clip,width,optim.eps]")
    assert launch.recorded == before


def test_fewer_keys_for_the_same_arms_are_another_question(launch: Launches) -> None:
    launch(A, B, declared="[width,optim.lr]")
    with pytest.raises(UserError, match=naming("declared", "width", "optim.lr")):
        launch(A, B, declared="[width]")
    launch(A, B, C, declared="[width,optim.lr]")
    with pytest.raises(UserError, match=naming("declared", "width", "optim.lr")):
        launch(A, B, declared="[width]")  # `c` does not differ in it


CONSTANT = {"optim.schedule": "constant"}


def test_all_cells_are_extended_alike(launch: Launches) -> None:
    launch(A, B, seeds=[0, 1], **CONSTANT)
    for arms, seeds in (((A, B), [0]), ((A,), [0, 1]), ((A, B), [2])):
        with pytest.raises(UserError, match=naming("train.steps=800", "1000", "seeds=[0, 1")):
            launch(*arms, seeds=seeds, **CONSTANT, **{"train.steps": 1000})
    launch(A, B, seeds=[0, 1], **CONSTANT, **{"train.steps": 1000})
    found = [load.from_file(path).train.steps for path in (launch.root / "x").glob("*/*/config.yaml")]
    assert found == [1000] * 4
    assert [entry["steps"] for entry in launch.recorded["history"]] == [{"a": 800, "b": 800}, {"a": 1000, "b": 1000}]
    with pytest.raises(UserError, match=naming("train.steps", "1000", "800")):
        launch(A, B, seeds=[0, 1], **CONSTANT)


def test_an_arm_with_steps_of_its_own_is_extended_by_those(launch: Launches) -> None:
    declared = "[width,train.steps]"
    launch(A, "b: ['train.steps=900']", declared=declared, **CONSTANT)
    launch(A, "b: ['train.steps=950']", declared=declared, **CONSTANT)
    assert launch.recorded["steps"] == {"a": 800, "b": 950}


@pytest.mark.parametrize("key", keys.OF_ROUNDING)
def test_how_a_cell_is_computed_may_change_but_arms_that_differ_in_it_declare_it(launch: Launches, key: str) -> None:
    value = {"train.micro_batch_size": 2, "train.threads": 2, "train.device": "cpu"}[key]
    launch(A, B)
    launch(A, B, **{key: value})
    (changed,) = {str(keys.flatten(load.from_file(path))[key]) for path in (launch.root / "x").glob("*/*/config.yaml")}
    assert changed == str(value)
    with pytest.raises(UserError, match=naming(key, "'declared'")):
        experiment_of([f"++arms={{a: [], b: ['{key}={value}']}}", "name=y"], compose)


def test_the_precision_may_not_change(launch: Launches) -> None:
    launch(A, B)
    with pytest.raises(UserError, match=naming("train.precision", "auto", "bf16")):
        launch(A, B, **{"train.precision": "bf16"})
