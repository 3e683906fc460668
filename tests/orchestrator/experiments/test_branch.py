"""Mistakes in `branch` are refused before anything is trained; a trunk keeps the states that branches begin from."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.compose import compose
from orchestrator.experiments.dependency import awaited_cells
from orchestrator.experiments.experiment import Experiment, decoder_spec, experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.launch.jobs import waves
from orchestrator.plan.arm import ArmPlan
from tests.naming import naming

pytestmark = pytest.mark.usefixtures("hydra")


def build(arms: str, *options: str, declared: str = "[branch,optim,sidecar,width,needs]") -> Experiment:
    return experiment_of([f"++arms={{{arms}}}", f"declared={declared}", "name=x", *options], compose)


def begins(arm: str, step: int) -> str:
    return f"'branch={{arm: {arm}, step: {step}}}'"


FORKS = "'sidecar=decay','sidecar.credit=forks','++sidecar.coefficients={decay: "


@pytest.mark.parametrize(
    ("arms", "named"),
    [
        (f"a: [], b: [{begins('nobody', 3)}]", ["Arm 'b'", "branch.arm=nobody", "a, b"]),
        (f"a: [], b: [{begins('a', 801)}]", ["Arm 'b'", "branch.step=801", "800"]),
        (f"a: [], b: [{begins('a', 800)}]", ["Arm 'b'", "branch.step=800", "train.steps=800"]),
        (f"a: [], b: [{begins('a', 0)}]", ["branch.step=0", "above 0"]),
        ("a: [], b: ['branch.arm=a']", ["Arm 'b'", "branch.step=None", "branch.arm=a"]),
        ("a: [], b: ['branch.step=3']", ["Arm 'b'", "branch.step=3", "branch.arm=None"]),
        ("a: [], b: ['branch.experiment=elsewhere']", ["Arm 'b'", "branch.arm=None"]),
        (f"a: [], b: [{begins('b', 3)}]", ["Arm 'b'", "b branches from b"]),
        (f"a: [], b: [{begins('c', 9)}], c: [{begins('b', 8)}]", ["Arm 'b'", "b branches from c branches from b"]),
        (f"a: ['needs=b'], b: [{begins('a', 3)}]", ["Arm 'a'", "a needs b branches from a"]),
        (f"a: [], b: ['width=ramp',{begins('a', 3)}]", ["Arm 'b'", "branch.arm=a", "width.profile", "ramp"]),
        (f"a: ['sidecar=decay'], b: ['sidecar=all',{begins('a', 3)}]", ["Arm 'b'", "sidecar.channels", "lr_scale"]),
        (f"a: [{FORKS}{{depth: 0.1}}}}'], b: [{FORKS}{{time: 0.1}}}}',{begins('a', 3)}]",
         ["Arm 'b'", "branch.arm=a", "decay.depth", "decay.time"]),
        (f"a: [], b: [{begins('a', 9)}], c: [{begins('b', 4)}]", ["Arm 'c'", "branch.step=4", "10 to 800"]),
        ("a: [], b: ['branch={arm: a, step: 3, experiment: no/where}']", ["branch.experiment=no/where", "a/seed=0"]),
    ],
)  # fmt: skip
def test_a_trunk_that_cannot_be_one_is_refused(arms: str, named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)) as caught:
        build(arms)
    assert "\n" not in str(caught.value)


def test_where_an_arm_begins_is_declared() -> None:
    with pytest.raises(UserError, match=naming("branch.arm", "branch.step", "'declared'")):
        build(f"a: [], b: [{begins('a', 3)}]", declared="[optim]")


def test_a_trunk_keeps_the_states_that_branches_begin_from_and_comes_first() -> None:
    experiment = build(f"twig: [{begins('late', 700)}], late: [{begins('base', 600)}], base: ['train.keep_at=[9]']")
    kept = {arm: config.train.keep_at for arm, config in experiment.arms.items()}
    assert kept == {"twig": [700], "late": [600, 700], "base": [9, 600]}
    twig, late, base = experiment.cells
    assert awaited_cells(twig.config, experiment.directory) == {late.directory}
    assert waves([twig, late, base]) == [[base], [late], [twig]]


def test_a_plan_counts_the_steps_of_a_trunk_once() -> None:
    experiment = build(f"base: [], late: [{begins('base', 600)}]")
    base, late = (ArmPlan(arm, config, decoder_spec(config)) for arm, config in experiment.arms.items())
    assert late.updates == 200
    assert late.flops == pytest.approx(base.flops / 4)
    assert late.tokens * 4 == base.tokens
    assert late.readings == {800}
    assert late.saved == {0, 600, 800}
    assert base.saved == {0, 200, 400, 600, 800}


def test_a_trunk_of_another_experiment_is_that_of_the_same_seed_and_the_same_data(tmp_path: Path) -> None:
    root = f"root={tmp_path}"
    first = experiment_of(["name=first", "seeds=[4]", "++arms={a: [], b: []}", root], compose)
    open_directory(first)
    trunk = f"'branch={{arm: b, step: 9, experiment: {first.directory}}}'"
    (cell,) = build(f"c: [{trunk}]", root, "seeds=[4]").cells
    assert awaited_cells(cell.config, tmp_path / "x") == {tmp_path / "first/b/seed=4"}
    with pytest.raises(UserError, match=naming("branch.experiment", "b/seed=0")):
        build(f"c: [{trunk}]", root)
    with pytest.raises(UserError, match=naming("branch.experiment", "optim.lr", "0.002", "0.001", "declared")):
        build(f"c: [{trunk}]", root, "seeds=[4]", "optim.lr=0.001", declared="[branch]")
