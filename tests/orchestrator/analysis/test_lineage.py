"""What the report says of trunks and branches, of arms that were dropped, and of runs that are being extended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.analysis import compare
from orchestrator.analysis.cells import read_experiment
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.sections.lineage import lineage
from orchestrator.common.errors import UserError
from tests.naming import names, naming

Write = Callable[..., Path]
ENTRY = {"since": "2026-11-03T10:00:00+00:00", "seeds": [0, 1], "contrasts": {}, "expect": {}}
ARMS = ("base", "late", "twig", "apart")


def describe(root: Path, **more: Any) -> Path:
    path = root / "experiment.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | more, sort_keys=False))
    return root


def branch(arm: str, step: int, experiment: str | None = None) -> dict[str, Any]:
    return {"arm": arm, "step": step, "experiment": experiment}


@pytest.fixture
def branched(experiment: Write) -> Path:
    models = {arm: {"params": 100, "widths": [8], "training_flops": 1000.0} for arm in ARMS}
    return describe(
        experiment(arms=ARMS), models=models, steps=dict.fromkeys(ARMS, 100),
        lineage={"twig": branch("late", 75), "late": branch("base", 50)},
    )  # fmt: skip


def test_the_tree_and_what_the_arms_trained_themselves(branched: Path) -> None:
    section = lineage(compute(branched))
    assert [row[:5] for row in section.rows] == [
        ["base", "0", "100", "100", "1e+03"],
        ["└ late", "50", "100", "50", "500"],
        ["  └ twig", "75", "100", "25", "250"],
        ["apart", "0", "100", "100", "1e+03"],
    ]
    assert [row[5].count("█") for row in section.rows] == [24, 12, 6, 24]  # type: ignore[union-attr]
    assert names(section.notes[0], "2.75e+03", "4e+03")


def test_without_a_trunk_there_is_no_tree(experiment: Write) -> None:
    assert lineage(compute(experiment())).rows == []


def test_a_trunk_of_another_experiment_or_of_a_dropped_arm_is_named(branched: Path) -> None:
    other = {"late": branch("base", 50, "outputs/first"), "twig": branch("apart", 75)}
    history = [dict(ENTRY, dropped=["apart"])]
    section = lineage(compute(describe(branched, lineage=other, dropped=["apart"], history=history)))
    assert [row[0] for row in section.rows] == ["base", "late (from base)", "twig (from apart)"]
    assert names(section.notes[1], "outputs/first")


def test_the_report_shows_it(branched: Path) -> None:
    compare(branched)
    assert "Trunk and branches" in (branched / "comparison/report.html").read_text()


def test_a_dropped_arm_is_not_compared_and_the_report_says_since_when(experiment: Write) -> None:
    def entry(day: int, *dropped: str) -> dict[str, Any]:
        expect = {"c": {"late": "specialist"}} if day == 1 else {}
        since = f"2026-11-0{day}T10:00:00+00:00"
        return {"since": since, "seeds": [0, 1], "contrasts": {}, "expect": expect, "dropped": [*dropped]}

    history = [entry(1), entry(2, "b"), entry(3), entry(4, "c"), entry(5, "c", "b")]
    root = describe(experiment(arms=("a", "b", "c", "d")), history=history, dropped=["c", "b"])
    found = compute(root)
    assert found.experiment.arms == ["a", "d"]
    assert {cell.arm for cell in found.experiment.cells} == {"a", "d"}
    first, second = (note for note in found.notes if "dropped" in note)
    assert names(first, "c", "2026-11-04")
    assert names(second, "b", "2026-11-05")


def test_a_run_that_is_being_extended_is_not_finished(experiment: Write) -> None:
    """Its last record has the test loss of the shorter run."""
    root = describe(experiment(), steps={"uniform": 100, "variable": 150})
    missing = {cell.arm: cell.missing for cell in read_experiment(root).cells}
    assert missing["uniform"] is None
    assert names(missing["variable"] or "", "step 100")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"lineage": {"late": {"arm": "base"}}}, ["lineage.late"]),
        ({"lineage": {"late": branch("base", -1)}}, ["lineage.late", "step"]),
        ({"steps": {"base": "many"}}, ["steps", "base"]),
        ({"dropped": "late"}, ["dropped"]),
        ({"history": [dict(ENTRY, steps=[100])]}, ["history.0", "steps"]),
    ],
)
def test_what_is_not_of_that_form_is_a_sentence(branched: Path, more: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(branched / "experiment.yaml")) as caught:
        read_experiment(describe(branched, **more))
    assert all(word in str(caught.value) for word in named)
