"""Terminal, verdict.json, tables and W&B say the same numbers, also where seeds lack a value."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

from orchestrator.analysis import compare
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.formatting import number
from orchestrator.analysis.summary import print_summary
from orchestrator.common.formatting import signed
from orchestrator.tracking.summaries import comparison_summary

Write = Callable[..., Path]
Edit = Callable[[Path, Callable[[list[dict[str, Any]]], object]], None]
ARMS, ROBUST = ("uniform", "variable", "third"), "saturated_robust"


def budget(arm: str, seed: int, step: int) -> list[float]:
    """Seed 0 of `variable` saturates nothing; every seed's budget lies elsewhere."""
    if (arm, seed) == ("variable", 0):
        return [0.0] * 4
    late = 20.0 + 3.0 * seed + {"uniform": 0.0, "variable": 17.0, "third": 5.0}[arm]
    return [40.0 - 5.0 * seed, 20.0, 20.0, late]


@pytest.fixture
def gaps(experiment: Write, edit_metrics: Edit) -> Path:
    """An empty budget in one seed, an arm without one seed, a measure that one reading lacks."""
    root = experiment(arms=ARMS, seeds=range(6), budget=budget, contrasts={"x": {"third": 1, "variable": -1}})
    edit_metrics(root / "third/seed=5", lambda records: records[-1].pop("test"))
    path = root / "third/seed=1/forensics/step_00000100.json"
    reading = json.loads(path.read_text())
    for name in (ROBUST, "attention_share"):
        reading["layers"][2]["measures"][name] = None
    path.write_text(json.dumps(reading))
    described = root / "experiment.yaml"
    spec = yaml.safe_load(described.read_text()) | {"expect": {"centre": "> 0.5"}}
    described.write_text(yaml.safe_dump(spec, sort_keys=False))
    return root


def test_all_outputs_agree_where_seeds_lack_a_value(gaps: Path) -> None:
    c = compare(gaps)
    said = json.loads((gaps / "comparison/verdict.json").read_text())
    wandb = comparison_summary(c)
    paired, spent = (pd.read_csv(gaps / f"comparison/tables/{name}.csv") for name in ("paired_eval", "conservation"))
    console = Console(width=200, file=io.StringIO(), force_terminal=False)
    print_summary(c, console, full=True)
    terminal = console.file.getvalue()
    assert wandb["pairs"] == len(said["pairs"]) == 11
    assert "nan" not in terminal.lower()

    for loss in (r for r in said["losses"] if (r["metric"], r["domain"]) == ("test_loss", "mean")):
        name = f"arm/{loss['arm']}/test_loss"
        for key in ("a", "b", "delta", "low", "high", "verdict"):
            assert wandb[f"{name}/{key}"] == loss[key]
        assert wandb[f"{name}/p"] == loss["p_adjusted"]
        rows = paired[(paired["arm"] == loss["arm"]) & (paired["metric"] == "test_loss") & (paired["domain"] == "mean")]
        assert len(rows) == loss["n"]
        assert rows["delta"].mean() == pytest.approx(loss["delta"])
        assert loss["delta"] == pytest.approx(loss["b"] - loss["a"])
        assert signed(loss["delta"], 4) in terminal

    shown = {"ratio": "ratio", "low": "low", "high": "high", "verdict": "verdict", "distance": "distance",
             "a": "budget_a", "b": "budget_b", "a_by_chance": "expected_a", "b_by_chance": "expected_b",
             "p": "p", "layers_a": "layers_a", "layers_b": "layers_b", "moved_p": "moved_p"}  # fmt: skip
    moved = {"a": "a", "b": "b", "delta": "shift", "low": "low", "high": "high", "p": "p"}
    newest = spent[(spent["step"] == 100) & (spent["reference"] == ROBUST)].set_index(["arm", "seed"])
    for found in (r for r in said["conservation"] if (r["reference"], r["region"]) == (ROBUST, "stack")):
        arm = found["arm"]
        for key, field in shown.items():
            assert wandb.get(f"arm/{arm}/budget/{ROBUST}/{key}") == found[field], key
        for key, field in moved.items():
            assert wandb.get(f"arm/{arm}/centre/{ROBUST}/{key}") == found[f"centre_{field}"], key
        centres = newest.loc["uniform"].join(newest.loc[arm], rsuffix="_b")
        centres = centres.loc[[pair["seed"] for pair in said["pairs"] if pair["arm"] == arm]]
        shifts = (centres["centre_b"] - centres["centre"]).dropna()
        assert len(shifts) in (4, 5)  # of six: an empty budget, or a missing seed and a missing count
        assert shifts.mean() == pytest.approx(found["centre_shift"])
        assert signed(found["centre_shift"], 2) in terminal
        assert number(found["ratio"], 2) in terminal
    (variable,) = (
        r for r in said["conservation"] if (r["arm"], r["reference"], r["region"]) == ("variable", ROBUST, "stack")
    )
    other_seeds = variable["centre_b"] - variable["centre_a"]
    assert variable["centre_shift"] != pytest.approx(other_seeds, abs=1e-3)  # the means are of unlike seeds

    for spread in said["symmetry"]:
        for key in ("a", "b", "delta", "low", "high", "p"):
            assert wandb[f"arm/{spread['arm']}/attention_spread/{key}"] == spread[key]
    for shift in said["role_shifts"]:
        for key in ("p", "distance", "smallest_p"):
            assert wandb[f"arm/{shift['arm']}/role_shift/{key}"] == shift[key]
    for one in said["contrasts"]:
        assert wandb[f"contrast/{one['contrast']}/{one['metric']}/value"] == one["value"]
    verdicts = [line["verdict"] for line in said["expectations"]]
    assert wandb["expect/of"] == len(verdicts) == 3
    assert wandb["expect/delivered"] == verdicts.count("delivered")
    assert wandb["expect/not_delivered"] == verdicts.count("not delivered")
    assert {key.removeprefix("pair/") for key in wandb if key.startswith("pair/")} - {"arm"} == {
        key.removeprefix("arm/variable/") for key in wandb if key.startswith("arm/variable/")
    }


def test_names_that_differ_in_a_dot_stay_two(experiment: Callable[..., Path]) -> None:
    row = comparison_summary(compute(experiment(arms=("uniform", "v1.5", "v1_5"))))
    assert {name.split("/")[1] for name in row if name.startswith("arm/")} == {"v1_5"}
    assert {"arm/v1_5/n", "arm/v1_5/n_"} <= set(row)
