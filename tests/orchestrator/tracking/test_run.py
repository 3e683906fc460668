"""The tracker against real W&B, offline: what it wrote is read back by W&B's own reader."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator.analysis import compare
from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.config.compose import CONF, compose
from orchestrator.config.schema import Config, DataConfig, DomainConfig, TrackerConfig, TrackerMode
from orchestrator.experiments.experiment import experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.forensics.reading import Reading
from orchestrator.jobs.readers import reader_for
from orchestrator.storage import lease, metrics_log
from orchestrator.storage.files import write_whole
from orchestrator.tracking import run
from orchestrator.tracking.run import Tracker
from orchestrator.training.callbacks import callbacks_for
from orchestrator.training.loop import StopSignal, train, train_cell
from orchestrator.training.trainer import Callback, Trainer
from tests.naming import names, naming
from tests.orchestrator.reading import layer_json, reading_json
from tests.orchestrator.tracking.offline_run import (
    WANDB,
    assert_same,
    inspect,
    media_of,
    of_kind,
    rows_with,
    runs_of,
    summary_of,
    table_in,
)
from tests.waiting import wait_for

PAGE = Path(__file__).parents[3] / "docs/first-experiment.md"


def config_of(mode: TrackerMode, seed: int = 3) -> Config:
    domains = {"code": DomainConfig(), "facts": DomainConfig()}
    return Config(
        name="width", arm="uniform", seed=seed, data=DataConfig(domains=domains), tracker=TrackerConfig(mode=mode)
    )


def record(step: int) -> dict[str, Any]:
    return {
        "step": step, "tokens": step * 64, "lr": 1e-3, "loss": 3.0 - step / 100 if step else None, "digest": "ab",
        "heldout": {"code": 3.5, "facts": 4.5}, "seconds": 1.5, "tokens_per_second": 64.0, "attempt": 1,
        "sidecar": {
            "step": max(0, step - 1), "reward": 0.25, "baseline": None, "advantage": None, "evaluations": 1 + step,
            "backwards": step,
            "sigma": {"decay": 0.3}, "summary": {"decay": {"min": 0.5, "mean": 1.0, "max": 2.0}},
            "values": {"decay": {"model.layers.0.mlp.up_proj.weight": 0.5}},
        },
    }  # fmt: skip


def reading(step: int) -> Reading:
    roles = ("hub", "specialist", "damper/hub")
    scores = {"hub": 0.6, "damper": 0.4, "passthrough": 0.3, "specialist": 0.5}
    measures = {"cv": 0.5 + step, "saturated_robust_expected": 1.0, "effective_rank.o": 9.0, "attention_share": None}
    layers = [
        layer_json(i, role, margin=0.1, scores=scores, measures=measures | {"saturated_robust": i})
        for i, role in enumerate(roles)
    ]
    totals = {"saturated_robust": 3.0, "saturated_fixed": None}
    return Reading.from_json(reading_json(layers, step, totals=totals))


def write_cell(cell: Path, steps: tuple[int, ...] = (0, 10, 20)) -> Path:
    (cell / "forensics").mkdir(parents=True)
    (cell / "config.yaml").write_text(load.to_yaml(config_of(TrackerMode.offline)))
    (cell / "metrics.jsonl").write_text("".join(json.dumps(record(step)) + "\n" for step in steps))
    for step in steps:
        (cell / f"forensics/step_{step:08d}.json").write_text(json.dumps(reading(step).to_json()))
    return cell


def services() -> list[int]:
    """Process ids of the W&B services that this process started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = status.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:  # gone meanwhile
            continue
        if name.startswith("wandb-core") and int(rest.split()[1]) == os.getpid():
            found.append(int(status.parent.name))
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the tracker said; W&B's own log goes to its own file."""
    return [r.message for r in caplog.records if r.name == "orchestrator.tracking.run"]


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cell on disk, in a working directory and a home that must stay empty."""
    for name in ("home", "cwd"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "cwd")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # what the tracker sets is taken back after the test
        monkeypatch.delenv(name)
    return write_cell(tmp_path / "width/uniform/seed=3")


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
    counts = {role: last[f"forensics/roles/{role}"] for role in ("hub", "damper", "passthrough", "specialist", "tie")}
    assert counts == {"hub": 1, "damper": 0, "passthrough": 0, "specialist": 1, "tie": 1}
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


def test_a_trained_cell_is_read_back_whole(cell: Path, small: list[str]) -> None:
    GlobalHydra.instance().clear()
    pressed = ["sidecar=decay", "sidecar.interval=4", "sidecar.warmup=0"]
    overrides = [*small, *pressed, "tracker=offline", "name=pressed", "seed=3"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = experiment_of(overrides, compose)
    (trained,) = experiment.cells
    open_directory(experiment)
    with StopSignal() as stop:
        assert train_cell(trained.directory, stop, reader_for)
    (run,) = runs_of(trained.directory)
    records = inspect(run)

    described = of_kind(records, "run")[0]
    assert (described["run_group"], described["job_type"]) == ("pressed", "train")
    assert described["tags"] == ["main", "seed=3", "pressed"]
    logged = described["config"]["update"]
    assert (logged["sidecar"]["mode"], logged["sidecar"]["interval"], logged["train"]["steps"]) == ("learn", 4, 12)
    assert of_kind(records, "exit")[-1].get("exit_code", 0) == 0

    on_disk = {r["step"]: r for r in metrics_log.read(trained.directory / "metrics.jsonl")}
    rows = {row["step"]: row for row in rows_with(records, "train/lr")}
    assert list(rows) == list(on_disk)
    for step, expected in on_disk.items():
        assert rows[step].get("train/loss") == expected["loss"]
        assert rows[step]["time/seconds"] == expected["seconds"]
        for split in ("heldout", "test"):
            for domain in ("code", "facts", "math"):
                assert rows[step].get(f"{split}/{domain}") == expected.get(split, {}).get(domain)

    decided = [step for step in rows if "sidecar/sigma/decay" in rows[step]]
    assert decided == [0, 4, 8]
    assert "sidecar/reward" not in rows[0]  # nothing to judge yet
    for step in decided:
        decision = on_disk[step]["sidecar"]
        for name in ("reward", "baseline", "advantage"):
            assert rows[step].get(f"sidecar/{name}") == decision[name]
        for name, value in decision["summary"]["decay"].items():
            assert rows[step][f"sidecar/summary/decay/{name}"] == value
        values = {k: v for k, v in rows[step].items() if k.startswith("sidecar/values/")}
        units = {unit.replace(".", "_"): value for unit, value in decision["values"]["decay"].items()}
        assert values == {f"sidecar/values/decay/{unit}": value for unit, value in units.items()}
        assert "sidecar/step" not in rows[step]  # no third axis: the decision is on the row's own

    results = {r["step"]: r for p in trained.directory.glob("forensics/*.json") for r in [json.loads(p.read_text())]}
    layers = {row["forensics/step"]: row for row in rows_with(records, "forensics/step")}
    assert list(layers) == sorted(results) == [0, 6, 12]
    for step, result in results.items():
        for layer in result["layers"]:
            at = f"layer_{layer['layer']:02d}"
            assert layers[step][f"forensics/margin/{at}"] == layer["margin"]
            assert layers[step][f"forensics/score_hub/{at}"] == layer["scores"]["hub"]
            assert layers[step][f"forensics/cv/{at}"] == layer["measures"]["cv"]

    compare(experiment.directory)  # of the one cell: its tables are the experiment's
    written = {path.stem: pd.read_parquet(path) for path in experiment.directory.glob("comparison/tables/*.parquet")}
    logged = media_of(records, "tables")
    assert set(logged) == {"layers", "role_migration", "conservation", "sidecar"}
    assert set(logged) == {name for name, table in written.items() if not table.empty}
    for name, media in logged.items():
        assert_same(table_in(run, media), written[name])
    assert {"layers", "conservation", "flattening", "sidecar"} <= set(media_of(records, "figures"))

    summary, last = summary_of(run), results[12]
    assert not [name for name in summary if "/layer_" in name or name.startswith("sidecar/")]
    assert summary["forensics/step"] == {"last": 12}
    for domain, loss in on_disk[12]["test"].items():
        assert summary[f"final/test_loss/{domain}"] == loss
        assert summary[f"final/validation_loss/{domain}"] == on_disk[12]["heldout"][domain]
        curve = [record["heldout"][domain] for record in on_disk.values() if "heldout" in record]
        assert summary[f"final/best_validation_loss/{domain}"] == min(curve)
    assert summary["final/test_loss/mean"] == pytest.approx(sum(on_disk[12]["test"].values()) / 3, rel=1e-12)
    assert summary["final/budget/saturated_robust"] == last["totals"]["saturated_robust"]
    named = [layer["role"] for layer in last["layers"]]
    for role in ("hub", "damper", "passthrough", "specialist"):
        assert summary[f"final/roles/{role}"] == named.count(role)
    assert summary["final/roles/tie"] == sum("/" in role for role in named)
    described = yaml.safe_load((experiment.directory / "experiment.yaml").read_text())["models"]["main"]
    assert summary["final/parameters"] == described["params"]
    assert summary["final/flops"] > described["training_flops"]  # the sidecar's passes are counted
    assert (summary["final/step"], summary["final/tokens"]) == (12, 12 * 2 * 32)


class WaitForReading(Callback):
    """Waits at `step` until its checkpoint has been read: by another process, for this one does nothing else."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Trainer) -> None:
        reading = run.cell_dir / f"forensics/step_{self.step:08d}.json"
        wait_for(lambda: run.step != self.step or reading.exists())


def test_readings_of_a_job_reach_the_run(cell: Path, small: list[str]) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        (trained,) = experiment_of([*small, "tracker=offline", "forensics=beside"], compose).cells
    write_whole(trained.directory / "config.yaml", load.to_yaml(trained.config))
    with StopSignal() as stop, lease.hold(trained.directory):
        callbacks = [*callbacks_for(trained.config, reader_for), WaitForReading(0), WaitForReading(6)]
        assert train(Trainer(trained.config, trained.directory, 1, callbacks), stop)
    logs = "".join(p.read_text() for p in trained.directory.parents[1].glob("jobs/*_log.out"))
    assert all(f"step_{step:08d}.json" in logs for step in (0, 6))
    (run,) = runs_of(trained.directory)
    layers = {row["forensics/step"]: row for row in rows_with(inspect(run), "forensics/step")}
    assert list(layers) == [0, 6, 12]
    for step, row in layers.items():
        result = json.loads((trained.directory / f"forensics/step_{step:08d}.json").read_text())
        assert row["forensics/cv/layer_01"] == result["layers"][1]["measures"]["cv"]


def test_off_writes_nothing(cell: Path) -> None:
    before = sorted(cell.rglob("*"))
    found = Tracker(config_of(TrackerMode.off))
    found.start(cell, [record(0)])
    found.log(record(10))
    found.forensics(reading(0))
    found.alert("a", "b")
    found.finish()
    assert sorted(cell.rglob("*")) == before


def test_a_killed_service_is_one_warning(cell: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = Tracker(config_of(TrackerMode.offline))
    found.start(cell, [record(0)])
    (service,) = services()
    os.kill(service, signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        for step in range(10, 200, 10):
            found.log(record(step))
            found.forensics(reading(step))
        found.alert("title", "text")
        found.finish()
    (said,) = warnings(caplog)
    assert re.search(r"W&B .*\(\w+: .*\).* metrics log", said)

    again = Tracker(config_of(TrackerMode.offline, seed=4))  # the next cell of this process is not harmed
    again.start(cell, [record(0)])
    again.finish()
    assert len(warnings(caplog)) == 1


def test_a_killed_service_leaves_no_trace_at_exit(cell: Path) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[3])!r}]
from tests.orchestrator.tracking.test_run import Tracker, TrackerMode, config_of, record, services
tracker = Tracker(config_of(TrackerMode.offline))
tracker.start(Path({str(cell)!r}), [record(0)])
os.kill(services()[0], signal.SIGKILL)
for step in range(10, 100):
    tracker.log(record(step))
tracker.finish()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert names(done.stderr, "W&B", "metrics log")


def bad_row(found: Tracker, cell: Path) -> None:
    found.start(cell, [])
    found.log({"step": 1, "loss": object()})


def bad_table(found: Tracker, cell: Path) -> None:
    found.start(cell, [])
    (cell / "forensics/step_00000010.json").write_text("{")
    found.finish()


def unusable_directory(found: Tracker, cell: Path) -> None:
    (cell / "wandb").write_text("a file")
    found.start(cell, [record(0)])


@pytest.mark.parametrize("harm", [bad_row, bad_table, unusable_directory])
def test_other_failures_are_one_warning_too(
    cell: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Tracker, Path], None]
) -> None:
    found = Tracker(config_of(TrackerMode.offline))
    with caplog.at_level(logging.WARNING):
        harm(found, cell)
        found.log(record(20))
        found.finish()
    (warning,) = warnings(caplog)
    assert names(warning, "W&B", "metrics log")


def call_check(home: Path, **environment: str) -> tuple[int, str]:
    """`run.check` for mode online in a process with nothing but `environment`."""
    program = (
        "from orchestrator.tracking import run; from orchestrator.config.schema import *\n"
        "try: run.check(Config(tracker=TrackerConfig(mode=TrackerMode.online)))\n"
        "except Exception as e: print(type(e).__name__, e); raise SystemExit(2)"
    )
    env = {"HOME": str(home), "PATH": os.environ["PATH"], **environment}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)
    return done.returncode, done.stdout + done.stderr


def test_online_needs_a_key_before_anything_is_trained(tmp_path: Path) -> None:
    code, said = call_check(tmp_path)
    assert code == 2
    assert names(said, "UserError", "tracker=online", "no API key")
    assert len(said.strip().splitlines()) == 1
    assert names(call_check(tmp_path, WANDB_API_KEY="short")[1], "UserError", "tracker=online", "log in")
    assert call_check(tmp_path, WANDB_API_KEY="0123456789" * 4) == (0, "")


def test_offline_and_off_need_no_key(cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.check(config_of(TrackerMode.offline))
    run.check(config_of(TrackerMode.off))
    monkeypatch.setattr(sys, "path", [])  # no package can be found any more
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match=naming("tracker=offline", "wandb")):
        run.check(config_of(TrackerMode.offline))
    run.check(config_of(TrackerMode.off))
