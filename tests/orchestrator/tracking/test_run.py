"""The tracker against real W&B, offline: what it wrote is read back by W&B's own reader."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from orchestrator.config.schema import TrackerMode
from orchestrator.tracking import run
from orchestrator.tracking.run import Tracker
from tests.orchestrator.tracking.cells import config_of, reading, record, write_cell
from tests.orchestrator.tracking.offline_run import (
    WANDB,
    inspect,
    of_kind,
    rows_with,
    runs_of,
)

PAGE = Path(__file__).parents[3] / "docs/first-experiment.md"


def test_a_cell_is_one_complete_run(cell: Path, tmp_path: Path) -> None:
    config = config_of(TrackerMode.offline)
    found = Tracker(config)
    found.start(cell, [record(0), record(10)])  # as after a restart at step 10
    for step in (0, 10):
        found.forensics(reading(step))
    found.log(record(10))  # again: sent already
    found.log(record(20))
    found.forensics(reading(20))
    found.alert("title", "text")
    found.finish()
    (directory,) = runs_of(cell)
    records = inspect(directory)

    (described,) = of_kind(records, "run")[:1]
    assert described["run_id"] == run.run_id(config)
    assert (described["project"], described["run_group"], described["job_type"]) == ("layer-roles", "width", "train")
    assert described["display_name"] == "width/uniform/seed=3"
    assert described["tags"] == ["uniform", "seed=3", "width"]
    logged = described["config"]["update"]
    assert logged["optim"]["lr"] == config.optim.lr
    assert logged["data"]["domains"]["facts"]["source"] == "builtin"
    assert logged["tracker"]["mode"] == "offline"

    axes = {m["glob_name"]: m["step_metric"] for m in of_kind(records, "metric") if "glob_name" in m}
    assert axes == {f"{g}/*": "step" for g in ("train", "heldout", "test", "sidecar", "time", "delta")} | {
        "forensics/*": "forensics/step"
    }
    train = rows_with(records, "train/lr")
    assert [row["step"] for row in train] == [0, 10, 20]
    assert "train/loss" not in train[0]
    assert (train[2]["train/loss"], train[2]["heldout/facts"], train[2]["sidecar/reward"]) == (2.8, 4.5, 0.25)
    layers = rows_with(records, "forensics/roles/hub")
    assert [row["forensics/step"] for row in layers] == [0, 10, 20]
    assert not any("step" in row for row in layers)
    last = layers[-1]
    counts = {
        role: last[f"forensics/roles/{role}"] for role in ("hub", "damper", "passthrough", "specialist", "tie", "none")
    }
    assert counts == {"hub": 1, "damper": 0, "passthrough": 0, "specialist": 1, "tie": 1, "none": 0}
    assert last["forensics/score_specialist/layer_01"] == 0.5
    assert last["forensics/cv/layer_02"] == 20.5
    assert last["forensics/centre/saturated_robust"] == pytest.approx((1 * 0.5 + 2 * 1.0) / 3)
    assert last["forensics/saturated_robust"] == 3
    assert "forensics/saturated_fixed" not in last

    assert [a["title"] for a in of_kind(records, "alert")] == ["title"]
    assert of_kind(records, "exit")[-1].get("exit_code", 0) == 0
    (row,) = rows_with(records, "tables/role_migration._type")
    assert row["tables/role_migration.log_mode"] == "IMMUTABLE"
    table = json.loads((directory / "files" / row["tables/role_migration.path"]).read_text())
    assert table["columns"] == (
        "arm seed step_from step layer role_from role_to margin_from margin_to changed".split()  # noqa: SIM905
    )
    assert table["data"][0] == ["uniform", 3, 0, 10, 0, "hub", "hub", 0.1, 0.1, False]
    table = json.loads((directory / "files" / row["tables/conservation.path"]).read_text())
    assert table["columns"][3:6] == ["reference", "budget", "expected"]
    assert table["data"][0][3:] == ["saturated_robust", 3.0, 3.0, 0.0, 0.0, 1.0, 2.0, pytest.approx(5 / 6)]

    assert not list((tmp_path / "home").rglob("*"))
    assert not list((tmp_path / "cwd").iterdir())
    assert all(path.resolve().is_relative_to(cell) for path in cell.rglob("*") if path.is_symlink())


def test_every_attempt_has_the_same_id_and_all_rows(cell: Path) -> None:
    config = config_of(TrackerMode.offline)
    for steps in ((0,), (0, 10, 20)):
        found = Tracker(config)
        found.start(cell, [record(step) for step in steps])
        found.finish()
    assert len(runs_of(cell)) == 2
    assert {log.name for log in cell.rglob("*.wandb")} == {f"run-{run.run_id(config)}.wandb"}
    assert sorted(len(rows_with(inspect(run), "train/lr")) for run in runs_of(cell)) == [1, 3]
    assert run.run_id(config) != run.run_id(config_of(TrackerMode.offline, seed=4))
    assert run.run_id(config) != run.run_id(config, "comparison")


def test_a_resumed_run_knows_what_was_sent(cell: Path) -> None:
    found = Tracker(config_of(TrackerMode.offline))
    found.start(cell, [])
    assert {run._last(found._run, axis) for axis in ("step", "forensics/step")} == {-1}
    found.log(record(10))
    found.forensics(reading(20))
    assert run._last(found._run, "step") == 10
    assert run._last(found._run, "forensics/step") == 20
    found.finish()


def test_names_longer_than_wandb_takes_are_cut(cell: Path) -> None:
    config = config_of(TrackerMode.offline)
    config.arm, config.name = "a" * 90, "n" * 120
    config.tracker.tags = ["width=ramp", "width=ramp", ""]
    found = Tracker(config)
    found.start(cell, [record(0)])
    found.finish()
    (run,) = runs_of(cell)
    described = of_kind(inspect(run), "run")[0]
    assert described["tags"] == ["a" * 64, "seed=3", "n" * 64, "width=ramp"]
    assert described["display_name"] == ("n" * 120 + "/" + "a" * 90)[:128]


def test_the_documented_command_finds_every_run(cell: Path, tmp_path: Path) -> None:
    """In directories with spaces and quotes, where a comparison was never made, and for several experiments at once."""
    (line,) = [x.strip() for x in PAGE.read_text().splitlines() if "wandb sync {}" in x]
    cells = [cell, *(write_cell(tmp_path / "o u't" / name / "a b/seed=0") for name in ("x__lr=0.1", "x__lr=0.2"))]
    for each in cells:
        found = Tracker(config_of(TrackerMode.offline))
        found.start(each, [record(0)])
        found.finish()
    command = line.partition("#")[0].replace("wandb sync", f"{shlex.quote(str(WANDB))} sync --dry-run")
    for root, expected in ((tmp_path / "width", cells[:1]), (tmp_path / "o u't", cells[1:])):
        here = command.replace("outputs/width_ablation", shlex.quote(str(root)))
        done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True, cwd=tmp_path)
        said = done.stdout + done.stderr
        assert all(run.name in said for each in expected for run in runs_of(each))


@pytest.mark.parametrize("code", [0, 1, 130])
def test_the_run_ends_as_the_cell_did(cell: Path, code: int) -> None:
    found = Tracker(config_of(TrackerMode.offline))
    found.start(cell, [record(0)])
    found.finish(code)
    (run,) = runs_of(cell)
    (ended,) = of_kind(inspect(run), "exit")
    assert ended.get("exit_code", 0) == code


def test_off_writes_nothing(cell: Path) -> None:
    before = sorted(cell.rglob("*"))
    found = Tracker(config_of(TrackerMode.off))
    found.start(cell, [record(0)])
    found.log(record(10))
    found.forensics(reading(0))
    found.alert("a", "b")
    found.finish()
    assert sorted(cell.rglob("*")) == before
