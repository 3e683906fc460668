"""Arms × seeds make the cells; unfair comparisons and reused names are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.common.errors import UserError
from orchestrator.config import keys, load
from orchestrator.config.compose import compose
from orchestrator.config.schema import Config
from orchestrator.experiments.experiment import Experiment, experiment_of
from orchestrator.experiments.run_directory import open_directory
from tests.naming import naming

pytestmark = pytest.mark.usefixtures("hydra")

ABLATION = ["+experiment=width_ablation"]


def build(*overrides: str, swept: Sequence[str] = ()) -> Experiment:
    return experiment_of(overrides, compose, swept=swept)


def test_arms_times_seeds() -> None:
    experiment = build(*ABLATION, "seeds=[4,7,9]")
    assert [cell.id for cell in experiment.cells] == [
        f"{arm}/seed={s}" for arm in ("uniform", "variable") for s in (4, 7, 9)
    ]
    assert {cell.config.width.profile.value for cell in experiment.cells if cell.config.arm == "variable"} == {"ramp"}
    assert experiment.directory == Path("outputs/width_ablation")


def test_the_runs_of_a_multirun_are_tagged_with_what_it_varies() -> None:
    experiment = build(*ABLATION, "optim.lr=0.001", "tracker.tags=[mine]", swept=["optim.lr=0.001"])
    assert {tuple(cell.config.tracker.tags) for cell in experiment.cells} == {
        ("mine", "width_ablation", "optim.lr=0.001")
    }
    assert experiment.config.tracker.tags == ["mine", "width_ablation", "optim.lr=0.001"]
    assert build(*ABLATION).config.tracker.tags == []


def test_what_is_composed_already_is_not_composed_again() -> None:
    asked: list[list[str]] = []

    def watched(overrides: Sequence[str]) -> Config:
        asked.append(list(overrides))
        return compose(overrides)

    words = ["+arms.a=[]", "+arms.b=['optim.lr=0.002']", "declared=[optim]"]
    experiment = experiment_of(words, watched, base=compose(words))
    assert asked == [[*words, "optim.lr=0.002"]]
    assert experiment == experiment_of(words, compose)
    experiment.config.launcher.parallel = 7  # as the share of a machine sets it
    assert {config.launcher.parallel for config in experiment.arms.values()} == {None}


def test_without_arms_the_overrides_are_one_cell() -> None:
    experiment = build("width=ramp", "seed=3")
    assert [cell.id for cell in experiment.cells] == ["main/seed=3"]
    assert experiment.name == "width=ramp"
    assert build("seed=3").name == "single"
    assert build("width=ramp", "name=mine").name == "mine"


def test_a_sweep_puts_its_overrides_into_the_name() -> None:
    fixed = ("tracker=off", "train.steps=7")
    one, other = (build(*ABLATION, f"model={m}", *fixed, swept=[f"model={m}"]) for m in ("tiny", "small"))
    assert one.directory != other.directory
    assert one.name == "width_ablation__model=tiny"
    assert build(*ABLATION, "model=tiny").name == "width_ablation"


def test_many_overrides_still_make_a_directory_name() -> None:
    long = [
        f"data.domains.{d}.{k}" for d in ("code", "facts", "math") for k in ("weight=2", "column=content", "name=x")
    ]
    one, other = build(*long, "optim.lr=0.001"), build(*long, "optim.lr=0.003")
    assert len(one.name) <= 120
    assert one.name != other.name


def _arms(arms: str, declared: str = "[width]") -> list[str]:
    return ["name=x", "seeds=[0]", f"++arms={arms}", f"declared={declared}"]


def test_an_undeclared_difference_is_refused_by_name() -> None:
    arms = "{a: ['width=uniform'], b: ['width=ramp', 'optim.lr=0.001']}"
    with pytest.raises(UserError, match=naming("optim.lr", "0.002", "0.001", "'declared'")):
        build(*_arms(arms))
    assert len(build(*_arms(arms, "[width,optim.lr]")).cells) == 2
    assert len(build(*_arms(arms, "[width,optim]")).cells) == 2


def test_a_declared_key_must_exist() -> None:
    with pytest.raises(UserError, match=naming("declared", "'widht'", "not a configuration key")):
        build(*_arms("{a: [], b: []}", "[widht]"))


def test_an_override_that_every_arm_overrules_is_refused() -> None:
    with pytest.raises(UserError, match=naming("'width=x_shape'", "arm 'uniform'", "width=uniform")):
        build(*ABLATION, "width=x_shape")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([*ABLATION, "seed=7"], ["'seed=7'", "seeds=[...]"]),
        ([*ABLATION, "arm=z"], ["'arm=z'"]),
        ([*_arms("{a: [], b: ['seed=5']}")], ["Arm 'b'", "seed=5"]),
        ([*_arms("{a: [], b: ['launcher=debug']}")], ["Arm 'b'", "launcher=debug"]),
        ([*_arms("{a: [], comparison: []}")], ["'comparison'"]),
        (["name=.data"], ["'.data'", "dot"]),
        (["name=''"], ["''", "empty"]),
    ],
)
def test_what_would_be_ignored_or_collide_is_refused(overrides: list[str], named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)):
        build(*overrides)


def test_an_arm_that_cannot_be_built_is_named() -> None:
    with pytest.raises(UserError, match=naming("Arm 'b'", "optim.lrr")):
        build(*_arms("{a: [], b: ['optim.lrr=1']}"))
    with pytest.raises(UserError, match=naming("Arm 'b'", "head_dim=7")):
        build(*_arms("{a: [], b: ['model.head_dim=7']}", "[model.head_dim]"))


def test_the_directory_is_opened_again_but_not_by_another_configuration(tmp_path: Path) -> None:
    root = f"root={tmp_path}"
    open_directory(build(*ABLATION, root))
    open_directory(build(*ABLATION, root, "tracker=off", "launcher=debug"))  # how it runs may change
    with pytest.raises(UserError, match=naming("optim.lr", "0.002", "0.001", "name=...")):
        open_directory(build(*ABLATION, root, "optim.lr=0.001"))
    open_directory(build(*ABLATION, root, "seeds=[0,1,2]"))
    description = yaml.safe_load((tmp_path / "width_ablation/experiment.yaml").read_text())
    assert description["seeds"] == [0, 1, 2]
    assert description["arms"] == {"uniform": ["width=uniform"], "variable": ["width=ramp"]}
    assert {"code", "machine", "question", "declared", "models"} <= description.keys()
    assert "torch" in description["code"][0]["versions"]
    assert len(description["code"]) == 1, "the same code is recorded once"


ANOTHER = {  # key of a launch → an override below it
    "launcher": "launcher.timeout_hours=3", "tracker": "tracker.project=other", "notify": "notify.command=true",
    "data.cache_dir": "data.cache_dir=here",
    "train.keep_checkpoints": "train.keep_checkpoints=7", "train.keep_states": "train.keep_states=7",
    "train.keep_at": "train.keep_at=[7]",
    "forensics.where": "forensics.where=job", "interventions": "interventions.documents=3",
    "budget": "budget.core_hours=3",
}  # fmt: skip


@pytest.mark.parametrize("key", keys.OF_A_LAUNCH)
def test_a_cell_takes_the_values_of_its_newest_launch(tmp_path: Path, key: str) -> None:
    first, second = build(*ABLATION, f"root={tmp_path}"), build(*ABLATION, f"root={tmp_path}", ANOTHER[key])
    open_directory(first)
    open_directory(second)
    for before, now in zip(first.cells, second.cells, strict=True):
        written = load.from_file(now.directory / "config.yaml")
        (changed,) = keys.differences(before.config, written)
        assert keys.is_within(changed, [key])
        assert written == now.config


def test_a_cell_that_keeps_all_states_does_so_until_a_launch_says_another_number(tmp_path: Path) -> None:
    root = f"root={tmp_path}"
    open_directory(first := build(*ABLATION, root))
    files = [cell.directory / "config.yaml" for cell in first.cells]
    for file in files:  # as it was before there was the key
        file.write_text("".join(line for line in file.open() if "keep_states" not in line))
    for more, expected in ((), None), (("tracker=off",), None), (("train.keep_states=1",), 1), ((), 2):
        open_directory(build(*ABLATION, root, *more))
        assert {load.from_file(file).train.keep_states for file in files} == {expected}


def test_a_cell_keeps_what_its_experiment_said_first(tmp_path: Path) -> None:
    open_directory(first := build(*ABLATION, f"root={tmp_path}"))
    open_directory(build(*ABLATION, f"root={tmp_path}", "question=Another?", "seeds=[0,1,2,3,4,5,6]"))
    for cell in first.cells:
        assert load.from_file(cell.directory / "config.yaml") == cell.config


def test_what_an_arm_is_cannot_change_under_a_name(tmp_path: Path) -> None:
    root = f"root={tmp_path}"
    open_directory(build(*_arms("{a: [], b: ['width=ramp']}"), root))
    with pytest.raises(UserError, match=naming("arms.b", "['width=ramp']", "['width=x_shape']")):
        open_directory(build(*_arms("{a: [], b: ['width=x_shape']}"), root))
    with pytest.raises(UserError, match=naming("declared", "['width']", "['width', 'optim.lr']")):
        open_directory(build(*_arms("{a: [], b: ['width=ramp']}", "[width,optim.lr]"), root))
    with pytest.raises(UserError, match=naming("baseline", "a", "b")):
        open_directory(build(*_arms("{b: ['width=ramp'], a: []}"), root))


def test_a_cells_config_is_enough_to_rebuild_it(tmp_path: Path) -> None:
    experiment = build(*ABLATION, f"root={tmp_path}")
    open_directory(experiment)
    for cell in experiment.cells:
        assert load.from_file(cell.directory / "config.yaml") == cell.config


CONTRAST = "++contrasts={b over a: {b: 1, a: -1}, sum: {a: 0.5, b: 0.5, c: -1.0}}"


def test_contrasts_are_recorded_in_their_order_and_may_be_added_later(tmp_path: Path) -> None:
    arms, path = _arms("{a: [], b: ['width=ramp'], c: ['width=x_shape']}"), tmp_path / "x/experiment.yaml"
    open_directory(build(*arms, f"root={tmp_path}"))
    assert yaml.safe_load(path.read_text())["contrasts"] == {}
    open_directory(build(*arms, CONTRAST, f"root={tmp_path}"))
    assert list(yaml.safe_load(path.read_text())["contrasts"].items()) == [
        ("b over a", {"b": 1, "a": -1}), ("sum", {"a": 0.5, "b": 0.5, "c": -1.0}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ("{a: 1, d: -1}", ["'x'", "'d'", "not an arm", "a, b_long"]),
        ("{a: 1, b_lng: -1}", ["'b_lng'", "not an arm", "'b_long'?"]),
        ("{a: 1}", ["'x'", "{'a': 1}", "two arms"]),
        ("{}", ["'x'", "{}", "two arms"]),
        ("{a: 1, b_long: 1}", ["'x'", "sum to 2"]),
        ("{a: 0, b_long: 0}", ["'x'", "arm 'a'", "weight 0"]),
        ("{a: inf, b_long: -1}", ["arm 'a'", "weight inf"]),
        ("{a: nan, b_long: -1}", ["arm 'a'", "weight nan"]),
        ("{a: true, b_long: -1}", ["arm 'a'", "weight True"]),
        ("{a: one, b_long: -1}", ["arm 'a'", "weight one"]),
        ("{a: 1e308, b_long: -1e308}", ["weight 1e+308", "1e-06", "1e+06"]),
        ("{a: 1e-9, b_long: -1e-9}", ["weight 1e-09", "1e-06", "1e+06"]),
    ],
)
def test_contrasts_that_say_nothing_are_refused(weights: str, named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)) as caught:
        build(*_arms("{a: [], b_long: ['width=ramp']}"), f"++contrasts.x={weights}")
    assert "\n" not in str(caught.value)


def test_the_contrasts_of_the_experiments_that_are_here() -> None:
    controls = build("+experiment=decay_controls").config.contrasts
    assert [next(arm for arm in weights if arm != "learned") for weights in controls.values()] == [
        "shared", "mean_matched", "global", "random", "permuted", "by_kind", "replayed",
    ]  # fmt: skip
    assert all(name.split(" - ") == list(weights) for name, weights in controls.items())
    assert build("+experiment=width_x_decay").config.contrasts == {
        "interaction": {"variable_learned": 1, "uniform_learned": -1, "variable": -1, "uniform": 1}
    }


def test_when_seeds_and_contrasts_were_added_is_kept(tmp_path: Path) -> None:
    arms, path = _arms("{a: [], b: ['width=ramp'], c: ['width=x_shape']}"), tmp_path / "x/experiment.yaml"

    def launch(*words: str) -> list[dict[str, Any]]:
        open_directory(build(*arms, *words, f"root={tmp_path}"))
        written = path.read_text()
        assert "*id" not in written.rpartition("\nhistory:")[2], "a reader should not have to resolve references"
        return yaml.safe_load(written)["history"]

    (first,) = launch()
    assert first | {"since": ""} == {
        "since": "", "seeds": [0], "contrasts": {}, "expect": {}, "dropped": [], "arms": ["a", "b", "c"],
        "steps": {"a": 800, "b": 800, "c": 800},
        "decide": {"auto": False, "margin": 0.0025, "min": 7, "max": 12, "step": 1},
    }  # fmt: skip
    assert launch("tracker=off") == [first]
    assert launch(CONTRAST)[0] == first
    other = "++contrasts={sum: {a: 0.5, b: 0.5, c: -1.0}, b over a: {b: 1, a: -1}}"
    *_, added, turned = launch(other)
    assert added["contrasts"] == turned["contrasts"]  # but for their order, in which they are tested
    assert list(added["contrasts"]) == list(reversed(turned["contrasts"]))
    assert [entry["seeds"] for entry in launch(other, "seeds=[0,3]")] == [[0], [0], [0], [0, 3]]
