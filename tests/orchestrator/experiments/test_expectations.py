"""Lines of `expect` are parsed or refused, and measured on readings written by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.common.errors import UserError
from orchestrator.config.compose import compose
from orchestrator.experiments.expectations import QUANTITIES, check_depths, intended, layers_of
from orchestrator.experiments.experiment import experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.forensics.reading import Reading
from tests.naming import naming
from tests.orchestrator.reading import reading_of

ARMS = ("uniform", "variable")


def letters_of(roles: str, budget: list[float | None] | None = None, shares: list[float] | None = None) -> Reading:
    """A reading whose layers carry the roles of the letters, a dot for a tie."""
    names = {"h": "hub", "d": "damper", "p": "passthrough", "s": "specialist", ".": "damper/hub"}
    counts, shares = budget or [1.0] * len(roles), shares or [0.4] * len(roles)
    measures = [{"saturated_robust": n, "attention_share": x} for n, x in zip(counts, shares, strict=True)]
    return reading_of([names[letter] for letter in roles], measures)


def value(line: str, wanted: Any, reading: Reading) -> float | None:
    (one,) = intended({line: wanted}, ["main"])
    return one.read(reading)


@pytest.mark.parametrize(
    ("region", "layers"),
    [
        ("early", [0, 1, 2, 3]), ("middle", [4, 5, 6, 7]), ("late", [8, 9, 10]), ("first", [0]), ("last", [10]),
        ("L6", [6]), ("L3-L5", [3, 4, 5]), ("L0-L10", list(range(11))), ("L9-L11", []), ("L11", []),
    ],
)  # fmt: skip
def test_regions_of_eleven_layers(region: str, layers: list[int]) -> None:
    assert layers_of(region, 11) == layers


def test_every_line_reads_its_number() -> None:
    reading = letters_of("sdp.sshhhss", [0.0] * 9 + [3.0, 1.0], [0.1 * i for i in range(11)])
    assert value("late", "specialist", reading) == pytest.approx(2 / 3)
    assert value("early", "specialist >= 0.3", reading) == 0.25  # the tie is nobody's
    assert value("last", "damper", reading) == 0.0
    assert value("L1-L2", "damper", reading) == 0.5
    assert value("centre", "> 0.7", reading) == pytest.approx((9 * 3 + 10) / 4 / 10)
    assert value("budget", [1, 9], reading) == 4.0
    assert value("spread", "> 0.1", reading) == pytest.approx(np.std(0.1 * np.arange(11)))
    counts = {line: value(line, "> 1", reading) for line in ("hubs", "dampers", "passthroughs", "specialists")}
    assert counts == {"hubs": 3, "dampers": 1, "passthroughs": 1, "specialists": 5}
    assert len(QUANTITIES) == 3 + len(counts)


def test_what_a_reading_cannot_say_is_null() -> None:
    empty, missing, single = letters_of("ss", [0.0, 0.0]), letters_of("ss", [1.0, None]), letters_of("s")
    assert value("centre", "> 0.7", empty) is None
    assert value("budget", "> 7", missing) is None
    assert value("centre", "> 0.7", missing) is None
    assert value("spread", "> 0.1", single) is None
    assert value("L7", "hub", single) is None
    assert value("late", "specialist", single) is None  # a third without a layer


@pytest.mark.parametrize(
    ("wanted", "inside", "outside", "text"),
    [
        ("> 0.7", [0.71, 1.0], [0.7, 0.0], "> 0.7"),
        (">=0.7", [0.7, 1.0], [0.699], "≥ 0.7"),
        ("≤ .5", [0.5, 0.0], [0.51], "≤ 0.5"),
        ("<5e-1", [0.49], [0.5], "< 0.5"),
        ("0.2 … 0.4", [0.2, 0.3, 0.4], [0.19, 0.41], "0.2 … 0.4"),
        ("0.2...0.4", [0.2, 0.4], [0.41], "0.2 … 0.4"),
        ([0.2, 0.4], [0.2, 0.4], [0.19], "0.2 … 0.4"),
    ],
)
def test_bounds_hold_what_they_say(wanted: Any, inside: list[float], outside: list[float], text: str) -> None:
    (one,) = intended({"centre": wanted}, ["main"])
    assert str(one) == f"main: centre {text}"
    assert all(map(one.bounds.hold, inside))
    assert not any(map(one.bounds.hold, outside))
    assert one.bounds.cover(*sorted((inside[0], inside[-1])))
    assert one.bounds.miss(outside[0], outside[0])
    assert not one.bounds.miss(*sorted((outside[0], inside[0])))
    assert not one.bounds.cover(*sorted((outside[0], inside[0])))


def test_lines_are_of_one_arm_or_of_all() -> None:
    lines = {"late": ["specialist", "hub<=0.2"], "centre": "> 0.7"}
    told = ["late specialist > 0.5", "late hub ≤ 0.2", "centre > 0.7"]
    assert [str(one) for one in intended({"variable": lines}, ARMS)] == [f"variable: {t}" for t in told]
    assert [str(one) for one in intended(lines, ARMS)] == [f"{arm}: {t}" for arm in ARMS for t in told]
    assert intended({}, ARMS) == []
    (of_arm,) = intended({"late": {"last": "hub"}}, ["late", "other"])  # an arm may be called what a line is called
    assert (of_arm.arm, of_arm.line) == ("late", "last")


HOSTILE: list[tuple[Any, list[str]]] = [
    ({"unifrom": {"late": "hub"}}, ["'unifrom'", "not an arm", "'uniform'?"]),
    ({"uniform": {"late": "hub"}, "late": "hub"}, ["'late'", "not an arm", "uniform, variable"]),
    ({"lte": "hub"}, ["'lte' of arm 'uniform'", "not a line", "'late'?", "early"]),
    ({6: "hub"}, ["'6' of arm 'uniform'", "not a line"]),
    ({"uniform": {}}, ["arm 'uniform'", "{}", "no line"]),
    ({"uniform": "late"}, ["arm 'uniform'", "'late'", "no line"]),
    ({"uniform": None}, ["arm 'uniform'", "None", "no line"]),
    ({"late": "specailist"}, ["'specailist'", "not a role", "'specialist'?"]),
    ({"late": "> 0.3"}, ["'> 0.3'", "not a role"]),
    ({"late": ["hub", 3]}, ["3", "not a role"]),
    ({"late": []}, ["[]", "not a role"]),
    ({"late": ""}, ["''", "not a role"]),
    ({"late": None}, ["None", "not a role"]),
    ({"late": "hub many"}, ["'many'", "not a comparison", "'> 0.7'", "'<= 3'"]),
    ({"late": "hub > 1"}, ["> 1", "no model", "between 0 and 1"]),
    ({"late": "hub >= 0"}, ["≥ 0", "every model"]),
    ({"centre": "specialist"}, ["'specialist'", "not a comparison"]),
    ({"centre": 0.7}, ["0.7", "not a comparison"]),
    ({"centre": "> high"}, ["'> high'", "not a comparison"]),
    ({"centre": "> nan"}, ["'> nan'", "not a comparison"]),
    ({"centre": [0.2]}, ["[0.2]", "not a comparison"]),
    ({"centre": [0.2, math.nan]}, ["[0.2, nan]", "not a comparison"]),
    ({"centre": [True, False]}, ["[True, False]", "not a comparison"]),
    ({"centre": [0.4, 0.2]}, ["[0.4, 0.2]", "smaller"]),
    ({"centre": "> 70"}, ["> 70", "no model", "between 0 and 1"]),
    ({"centre": "< 0"}, ["< 0", "no model"]),
    ({"centre": [-1, 2]}, ["-1", "2", "every model"]),
    ({"budget": ">= 0"}, ["≥ 0", "every model"]),
    ({"budget": "< -3"}, ["< -3", "no model"]),
    ({"L5-L3": "hub"}, ["'L5-L3' of arm 'uniform'", "L3-L5"]),
    ({"L-1": "hub"}, ["'L-1'", "not a line"]),
    ({"L0-L" + "9" * 5000: "hub"}, ["not a line"]),
    ({"centre": "> 1e999"}, ["'> 1e999'", "not a comparison"]),
    ({"hubs": "<= 1e999"}, ["'<= 1e999'", "not a comparison"]),
    ({"hubs": "-1e999 … 3"}, ["'-1e999 … 3'", "not a comparison"]),
    ({"hubs": [0.2, 10**400]}, ["'hubs' of arm 'uniform'", "not a comparison"]),
]


@pytest.mark.parametrize(("expect", "named"), HOSTILE, ids=[str(expect)[:60] for expect, _ in HOSTILE])
def test_what_cannot_be_understood_is_refused_in_one_sentence(expect: dict[Any, Any], named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)) as caught:
        intended(expect, ARMS)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(": ") >= 2, "where, why and the cure"


def test_layers_that_an_arm_does_not_have_are_refused() -> None:
    depths = {"uniform": 2, "variable": 12}
    check_depths(intended({"variable": {"L9-L11": "hub"}, "uniform": {"middle": "hub", "hubs": "> 1"}}, ARMS), depths)
    for line in ("L9-L11", "L2", "late"):
        with pytest.raises(UserError, match=naming(f"'{line}' of arm 'uniform'", "2 layers", "L0", "L1")):
            check_depths(intended({line: "hub"}, ARMS), depths)


@pytest.mark.usefixtures("hydra")
def test_an_experiment_is_refused_before_training_and_may_be_given_lines_later(tmp_path: Path) -> None:
    words = ["+experiment=width_x_decay", f"root={tmp_path}"]
    path = tmp_path / "width_x_decay/experiment.yaml"
    open_directory(experiment_of(words, compose))
    assert yaml.safe_load(path.read_text())["expect"] == {}
    later = ["++expect.uniform.late=specialist", '++expect.uniform.centre="> 0.7"', "++expect.uniform.L10=hub"]
    experiment = experiment_of([*words, *later], compose)
    assert experiment.directory == path.parent  # what is expected is not part of the name
    open_directory(experiment)
    recorded = yaml.safe_load(path.read_text())["expect"]
    assert recorded == {"uniform": {"late": "specialist", "centre": "> 0.7", "L10": "hub"}}
    for override, named in (
        ("++expect.unifrm.late=specialist", ["'unifrm'", "not an arm"]),
        ("++expect.uniform.late=boss", ["'boss'", "not a role"]),
        ("++expect.uniform.L11=hub", ["'L11' of arm 'uniform'", "L10"]),
    ):
        with pytest.raises(UserError, match=naming(*named)):
            experiment_of([*words, override], compose)


@pytest.mark.usefixtures("hydra")
def test_the_width_ablation_expects_what_the_paper_found() -> None:
    for model in ("tiny", "nano"):  # at any depth
        experiment = experiment_of(["+experiment=width_ablation", f"model={model}"], compose)
        wanted = intended(experiment.config.expect, experiment.arms)
        assert [str(one) for one in wanted] == ["uniform: last specialist > 0.5", "uniform: centre > 0.7"]
