"""The cost of each verdict, in the report's table and in W&B's summary, against hours counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator.analysis import compare
from orchestrator.analysis.sections.costs import verdict_cost, verdict_costs, whole_cost
from orchestrator.config import load
from orchestrator.experiments.costs import Cost
from orchestrator.tracking.summaries import comparison_summary
from tests.orchestrator.experiments.test_costs import log

Write = Callable[..., Path]
CORE, GPU = {"threads": 1, "ranks": 1}, {"threads": 1, "ranks": 1, "cuda": "12.8"}


@pytest.fixture
def root(experiment: Write) -> Path:
    """Three arms, of which the third branches from the second: 1, 2 and 4 core-hours, and a search of 8 GPU-hours."""
    root = experiment(arms=("base", "trunk", "late"), seeds=(0,))
    for arm, hours in (("base", 1.0), ("trunk", 2.0), ("late", 4.0)):
        cell = f"{arm}/seed=0"
        log(root, (10.0, cell, "running", 9, CORE), (10.0 + hours, cell, "done", 9))
    path = root / "late/seed=0/config.yaml"
    written = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(written | {"branch": {"arm": "trunk", "step": 1, "experiment": None}}))
    assert load.from_file(path).branch.arm == "trunk"
    spec = root / "experiment.yaml"
    spec.write_text(yaml.safe_dump(yaml.safe_load(spec.read_text()) | {"declared": ["width", "branch"]}))
    log(root / "search/3_steps", (0.0, "trial_0/seed=7", "running", 1, GPU), (8.0, "trial_0/seed=7", "done", 1))
    return root


def test_a_verdict_costs_what_it_rests_on(root: Path) -> None:
    c = compare(root)
    assert verdict_cost(c, "trunk") == Cost(pytest.approx(3.0), pytest.approx(8.0))
    assert verdict_cost(c, "late") == Cost(pytest.approx(7.0), pytest.approx(8.0))
    assert whole_cost(c) == Cost(pytest.approx(7.0), pytest.approx(8.0))
    rows = {str(row[0]): [str(cell) for cell in row[1:]] for row in verdict_costs(c).rows}
    assert rows["base"] == ["1.0 core-hours", ""]
    assert rows["late"] == ["4.0 core-hours", "8.0 GPU-hours and 7.0 core-hours"]
    assert rows["the search"][0] == "8.0 GPU-hours"
    assert "What the verdicts cost" in (root / "comparison/report.html").read_text()


def test_wandb_has_the_cost_of_the_experiment_and_of_each_verdict(root: Path) -> None:
    row = comparison_summary(compare(root))
    assert row["cost/core_hours"] == pytest.approx(7.0)
    assert row["arm/trunk/cost/core_hours"] == pytest.approx(3.0)
    assert row["arm/late/cost/gpu_hours"] == pytest.approx(8.0)


def test_the_price_is_that_of_the_newest_launch(root: Path) -> None:
    path = root / "experiment.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"budget": {"price": 2.0}}))
    rows = {str(row[0]): str(row[2]) for row in verdict_costs(compare(root)).rows}
    assert rows["trunk"] == "8.0 GPU-hours and 3.0 core-hours, at budget.price 22.000"
