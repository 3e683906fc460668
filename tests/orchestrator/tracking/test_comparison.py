"""The comparison's run: its tables, figures and summary are those on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from orchestrator.analysis import compare, figures
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.tables import BUILDERS
from orchestrator.config.schema import Config, TrackerConfig, TrackerMode
from orchestrator.tracking.run import log_comparison
from tests.orchestrator.tracking import offline_run as offline

Write = Callable[..., Path]
STEPS = tuple(range(0, 450, 50))  # enough readings for a trajectory
CONTRAST = {"variable - uniform": {"variable": 1, "uniform": -1}}


@pytest.mark.parametrize("arms", [("uniform", "variable"), ("uniform", "variable", "a <b> \"c\" 'd' 0.5 ü")])
def test_the_comparison_is_one_tracked_run(experiment: Write, arms: tuple[str, ...]) -> None:
    root = experiment(arms=arms, steps=STEPS, sidecar=True, interventions=True, contrasts=CONTRAST)
    config = Config(name="width_ablation", tracker=TrackerConfig(mode=TrackerMode.offline, tags=["swept=1"]))
    c = compare(root)
    log_comparison(config, c)
    (run,) = offline.runs_of(root / "comparison")
    records = offline.inspect(run)
    described = offline.of_kind(records, "run")[0]
    assert (described["job_type"], described["run_group"]) == ("comparison", "width_ablation")
    assert described["tags"] == ["comparison", "width_ablation", "swept=1"]
    assert not {"arm", "seed"} & set(described["config"]["update"])

    logged = offline.media_of(records, "tables")
    assert set(logged) == {*BUILDERS, "contrasts", "trajectory", "loss_drops"}
    for name, media in logged.items():
        assert media["log_mode"] == "IMMUTABLE"
        offline.assert_same(offline.table_in(run, media), pd.read_parquet(root / f"comparison/tables/{name}.parquet"))
    assert set(offline.media_of(records, "figures")) == set(figures.draw(c))

    name = arms[-1].replace(".", "_")
    deltas = {row["step"]: row[f"delta/{name}/mean"] for row in offline.rows_with(records, f"delta/{name}/mean")}
    assert list(deltas) == list(STEPS)
    assert deltas[100] == pytest.approx(-0.1 if arms[-1] == "variable" else 0.0, abs=1e-12)
    summary, verdict = offline.summary_of(run), json.loads((root / "comparison/verdict.json").read_text())
    assert not [key for key in summary if "." in key or key.startswith("delta/")]
    primary = next(x for x in verdict["losses"] if (x["metric"], x["domain"]) == ("test_loss", "mean"))
    for key in ("a", "b", "delta", "low", "high", "verdict"):
        assert summary[f"pair/test_loss/{key}"] == summary[f"arm/variable/test_loss/{key}"] == primary[key]
    budget = verdict["conservation"][0]
    assert summary["pair/budget/saturated_robust/ratio"] == budget["ratio"]
    assert summary["pair/budget/saturated_robust/verdict"] == budget["verdict"]
    assert summary["pair/centre/saturated_robust/delta"] == budget["centre_b"] - budget["centre_a"]
    contrast = verdict["contrasts"][0]
    assert summary["contrast/variable - uniform/test_loss/value"] == contrast["value"]
    assert (summary["pair/arm"], summary["baseline"], summary["pairs"]) == ("variable", "uniform", len(c.pairs))
    assert f"arm/{name}/test_loss/verdict" in summary


def test_a_relaunch_logs_the_same_run_anew(experiment: Write) -> None:
    """`wandb sync` sends runs of one id in the order of their starts, each from its first row: the last one stands."""
    config = Config(name="width_ablation", tracker=TrackerConfig(mode=TrackerMode.offline))
    c = compute(experiment())
    for _ in range(2):
        log_comparison(config, c)
        time.sleep(1)  # the directories are named by the second
    first, second = (offline.inspect(run) for run in offline.runs_of(c.directory))
    assert offline.of_kind(first, "run")[0]["run_id"] == offline.of_kind(second, "run")[0]["run_id"]
    assert [set(row) for row in offline.rows_with(first, "_step")] == [
        set(row) for row in offline.rows_with(second, "_step")
    ]
