"""A cell that was trained with the tracker on, read back by W&B's own reader, agrees with its files."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator.analysis import compare
from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.config.compose import CONF, compose
from orchestrator.experiments.experiment import experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.jobs.readers import reader_for
from orchestrator.storage import lease, metrics_log
from orchestrator.storage.files import write_whole
from orchestrator.training.callbacks import callbacks_for
from orchestrator.training.loop import StopSignal, train, train_cell
from orchestrator.training.trainer import Callback, Trainer
from tests.orchestrator.tracking import offline_run as offline
from tests.waiting import wait_for


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
    (run,) = offline.runs_of(trained.directory)
    records = offline.inspect(run)

    described = offline.of_kind(records, "run")[0]
    assert (described["run_group"], described["job_type"]) == ("pressed", "train")
    assert described["tags"] == ["main", "seed=3", "pressed"]
    logged = described["config"]["update"]
    assert (logged["sidecar"]["mode"], logged["sidecar"]["interval"], logged["train"]["steps"]) == ("learn", 4, 12)
    assert offline.of_kind(records, "exit")[-1].get("exit_code", 0) == 0

    on_disk = {r["step"]: r for r in metrics_log.read(trained.directory / "metrics.jsonl")}
    rows = {row["step"]: row for row in offline.rows_with(records, "train/lr")}
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
    layers = {row["forensics/step"]: row for row in offline.rows_with(records, "forensics/step")}
    assert list(layers) == sorted(results) == [0, 6, 12]
    for step, result in results.items():
        for layer in result["layers"]:
            at = f"layer_{layer['layer']:02d}"
            assert layers[step][f"forensics/margin/{at}"] == layer["margin"]
            assert layers[step][f"forensics/score_hub/{at}"] == layer["scores"]["hub"]
            assert layers[step][f"forensics/cv/{at}"] == layer["measures"]["cv"]

    compare(experiment.directory)  # of the one cell: its tables are the experiment's
    written = {path.stem: pd.read_parquet(path) for path in experiment.directory.glob("comparison/tables/*.parquet")}
    logged = offline.media_of(records, "tables")
    assert set(logged) == {"layers", "role_migration", "conservation", "sidecar"}
    assert set(logged) == {name for name, table in written.items() if not table.empty}
    for name, media in logged.items():
        offline.assert_same(offline.table_in(run, media), written[name])
    assert {"layers", "conservation", "flattening", "sidecar"} <= set(offline.media_of(records, "figures"))

    summary, last = offline.summary_of(run), results[12]
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
    for role in ("hub", "damper", "passthrough", "specialist", "none"):
        assert summary[f"final/roles/{role}"] == named.count(role)
    assert summary["final/roles/tie"] == sum("/" in role for role in named)
    described = yaml.safe_load((experiment.directory / "experiment.yaml").read_text())["models"]["main"]
    assert summary["final/parameters"] == described["params"]
    assert summary["final/flops"] > described["training_flops"]  # the sidecar's passes are counted
    assert (summary["final/step"], summary["final/tokens"]) == (12, 12 * 2 * 32)


class FailAtOnce(Callback):
    """Ends a run before its first update."""

    def after_step(self, run: Trainer) -> None:
        raise UserError("no reason")


def test_a_failure_before_the_first_update_is_a_failed_run(cell: Path, small: list[str]) -> None:
    """W&B starts after that update; what the metrics log holds by then is sent."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        (trained,) = experiment_of([*small, "tracker=offline", "name=failing"], compose).cells
    write_whole(trained.directory / "config.yaml", load.to_yaml(trained.config))
    callbacks = [*callbacks_for(trained.config, reader_for), FailAtOnce()]
    with StopSignal() as stop, pytest.raises(UserError, match="no reason"):
        train(Trainer(trained.config, trained.directory, 1, callbacks), stop)
    (run,) = offline.runs_of(trained.directory)
    records = offline.inspect(run)
    assert [row["step"] for row in offline.rows_with(records, "train/lr")] == [0]
    assert offline.of_kind(records, "exit")[-1]["exit_code"] == 1


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
    (run,) = offline.runs_of(trained.directory)
    layers = {row["forensics/step"]: row for row in offline.rows_with(offline.inspect(run), "forensics/step")}
    assert list(layers) == [0, 6, 12]
    for step, row in layers.items():
        result = json.loads((trained.directory / f"forensics/step_{step:08d}.json").read_text())
        assert row["forensics/cv/layer_01"] == result["layers"][1]["measures"]["cv"]


def test_a_branch_is_sent_with_the_records_and_readings_of_its_trunk(small: list[str], tmp_path: Path) -> None:
    arms = "++arms={trunk: [], late: ['branch={arm: trunk, step: 8}']}"
    words = [*small, arms, "declared=[branch]", "name=x", f"root={tmp_path}", "tracker=offline"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = experiment_of(words, compose)
    open_directory(experiment)
    for cell in experiment.cells:
        with StopSignal() as stop:
            assert train_cell(cell.directory, stop, reader_for)
    trunk, late = (offline.inspect(*offline.runs_of(cell.directory)) for cell in experiment.cells)
    for key in ("train/lr", "forensics/step"):
        found, expected = (
            [{k: v for k, v in row.items() if not k.startswith(("time/", "_"))} for row in offline.rows_with(of, key)]
            for of in (late, trunk)
        )
        assert len(found) > 2
        assert found == expected
    assert not offline.rows_with(late, "train/trunk")
