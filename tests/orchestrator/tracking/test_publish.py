"""W&B's environment and copies: every cell keeps a run of its own, and any finished cell can be sent later."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from orchestrator import compare
from orchestrator.config import load
from orchestrator.experiments.description import identity
from orchestrator.storage import metrics_log
from tests.naming import names
from tests.orchestrator.tracking.offline_run import inspect, of_kind, rows_with, runs_of, summary_of

Orchestrate = Callable[..., int]
ARMS = ("name=mine", "++arms={a: [], b: ['width=ramp']}", "declared=[width]", "seeds=[0]", "launcher=debug")
NAMED = ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_ID")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login, and none of W&B's variables."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (*NAMED, "WANDB_API_KEY", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_GROUP", "NETRC"):
        monkeypatch.delenv(name, raising=False)


def described(directory: Path) -> dict[str, object]:
    (run,) = runs_of(directory)
    found: dict[str, object] = of_kind(inspect(run), "run")[0]
    return found


def tracker_of(directory: Path) -> dict[str, object]:
    return dict(yaml.safe_load((directory / "a/seed=0/config.yaml").read_text())["tracker"])


@pytest.fixture
def untracked(trained: Callable[..., Path]) -> Path:
    """A finished experiment whose tracker was off."""
    return trained(*ARMS)


def test_finished_cells_are_sent_later(untracked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not [*untracked.rglob("*.wandb")]
    for times in (1, 2):
        capsys.readouterr()
        assert compare.main([str(untracked), "--publish"]) == 0
        assert names(capsys.readouterr().out, "a/seed=0", "b/seed=0", "wandb sync")
        ids = {path.name for path in untracked.glob("*/seed=0/wandb/*/*.wandb")}
        assert len(ids) == 2, "sent again, it is the same run"
        assert len(runs_of(untracked / "a/seed=0")) == times
    run = runs_of(untracked / "a/seed=0")[0]
    records = metrics_log.read(untracked / "a/seed=0/metrics.jsonl")
    sent = rows_with(inspect(run), "train/lr")
    assert [(row["step"], row.get("train/loss")) for row in sent] == [(r["step"], r["loss"]) for r in records]
    assert [row["forensics/step"] for row in rows_with(inspect(run), "forensics/roles/hub")] == [0, 6, 12]
    comparison = runs_of(untracked / "comparison")[0]
    assert summary_of(comparison)["test_loss/a"] == pytest.approx(
        sum(records[-1]["test"].values()) / len(records[-1]["test"])
    )


def test_an_unfinished_cell_is_not_sent(untracked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = untracked / "b/seed=0/metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert compare.main([str(untracked), "--publish"]) == 0
    assert not [*untracked.glob("b/seed=0/wandb")]
    assert [*untracked.glob("a/seed=0/wandb")]
    assert compare.main([str(untracked), str(untracked), "--publish"]) == 2


def test_a_copy_has_runs_of_its_own(untracked: Path, tmp_path: Path) -> None:
    copies = [tmp_path / "outputs/theirs", tmp_path / "backup/mine"]
    for copy in copies:
        shutil.copytree(untracked, copy)
    moved = shutil.move(copies[1], tmp_path / "moved")
    found = []
    for directory in (untracked, copies[0], Path(moved)):
        assert compare.main([str(directory), "--publish"]) == 0
        found.append(described(directory / "a/seed=0"))
    assert len({run["run_id"] for run in found}) == 3
    assert [run["run_group"] for run in found] == ["mine", "theirs", "moved"]
    assert found[1]["display_name"] == "theirs/a/seed=0"
    before = identity(copies[0])
    copies[0].rename(tmp_path / "outputs/renamed")
    assert identity(tmp_path / "outputs/renamed") == before != identity(untracked)


def test_an_older_experiment_keeps_its_ids(untracked: Path) -> None:
    path = untracked / "experiment.yaml"
    older = yaml.safe_load(path.read_text())
    del older["id"]
    path.write_text(yaml.safe_dump(older))
    assert identity(untracked) == ""


def test_the_environment_is_the_default_of_the_tracker(
    orchestrate: Orchestrate, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untold = [override for override in small if not override.startswith("tracker=")]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert orchestrate(*untold, *ARMS) == 0
    assert tracker_of(tmp_path / "outputs/mine")["mode"] == "off"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "lab")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "files"))
    assert orchestrate(*untold, *ARMS[1:], "name=second") == 0
    assert tracker_of(tmp_path / "outputs/second") == {
        "mode": "offline", "project": "theirs", "entity": "lab", "dir": str(tmp_path / "files"), "tags": [],
    }  # fmt: skip
    assert not [*(tmp_path / "outputs/second").rglob("*.wandb")]
    runs = [of_kind(inspect(run), "run")[0] for run in runs_of(tmp_path / "files")]
    assert {(run["project"], run["job_type"]) for run in runs} == {("theirs", "train"), ("theirs", "comparison")}
    assert orchestrate(*untold, *ARMS[1:], "name=third", "tracker=off", "tracker.project=ours") == 0
    told = tracker_of(tmp_path / "outputs/third")
    assert (told["mode"], told["project"]) == ("off", "ours")


def test_under_an_agent_cells_keep_their_own_runs(
    orchestrate: Orchestrate, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `wandb agent` starts a command: with variables, and the sweep's values in a file and as arguments."""
    (tmp_path / "params.yaml").write_text("wandb_version: 1\noptim.lr:\n  value: 0.001\n")
    variables = {
        "WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "run456", "WANDB_SWEEP_PARAM_PATH": f"{tmp_path}/params.yaml",
        "WANDB_PROJECT": "swept", "WANDB_DIR": str(tmp_path), "WANDB_RUN_GROUP": "theirs", "WANDB_NAME": "theirs",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert orchestrate(*small, *ARMS, "optim.lr=0.001", "tracker=offline") == 0
    directory = tmp_path / "outputs/mine__optim.lr=0.001"
    runs = [described(directory / path) for path in ("a/seed=0", "b/seed=0", "comparison")]
    assert len({run["run_id"] for run in runs}) == 3
    assert [run["run_id"] == "run456" for run in runs] == [False, False, True]
    assert [run.get("sweep_id") or None for run in runs] == [None, None, "sweep123"]
    assert {run["run_group"] for run in runs} == {directory.name}
    assert runs[0]["display_name"] == f"{directory.name}/a/seed=0"
    assert "pair/test_loss/delta" in summary_of(runs_of(directory / "comparison")[0])
    config = load.from_file(directory / "a/seed=0/config.yaml")
    assert replace(config.tracker, tags=[]).dir is None
    monkeypatch.setenv("WANDB_RUN_ID", "run789")  # the sweep comes back to the same values
    assert orchestrate(*small, *ARMS, "optim.lr=0.001", "tracker=offline") == 0
    assert len(runs_of(directory / "comparison")) == 2
