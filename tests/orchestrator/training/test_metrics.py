"""The records of a cell's metrics log."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.spec import forward_flops_per_token
from orchestrator.experiments.experiment import Cell, decoder_spec
from orchestrator.storage import checkpoint, metrics_log
from orchestrator.training import callbacks
from tests.orchestrator.training.cells import (
    Crash,
    CrashAt,
    clock_of_seconds,
    complete,
    new_cell,
    rows,
    run_with,
)


def test_the_metrics_log_has_every_logged_step_once(whole: Cell) -> None:
    records = rows(whole)
    assert [r["step"] for r in records] == [0, 2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in records if "heldout" in r] == [0, 4, 8, 12]
    assert [r["step"] for r in records if "test" in r] == [12]
    assert set(records[0]["heldout"]) == {"code", "facts", "math"}
    assert records[-1]["tokens"] == 12 * 2 * 32
    assert [checkpoint.step_of(p) for p in checkpoint.saved(whole.directory / "checkpoints")] == [
        0,
        4,
        6,
        8,
        12,
    ]
    assert sorted(p.name for p in whole.directory.glob("forensics/*")) == [f"step_{s:08d}.json" for s in (0, 6, 12)]


def test_every_record_has_the_share_of_the_peak(
    whole: Cell, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = metrics_log.read(whole.directory / "metrics.jsonl")
    assert {record["mfu"] for record in records} == {None}  # nobody publishes a CPU's peak
    monkeypatch.setattr(callbacks, "peak_flops", lambda device: 1e9)
    cell = new_cell([*small, "name=known"], tmp_path)
    complete(cell)
    flops = 3 * forward_flops_per_token(decoder_spec(cell.config), 32)
    for record in metrics_log.read(cell.directory / "metrics.jsonl")[1:]:
        expected = record["tokens_per_second"] * flops / 1e9
        assert record["mfu"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("crashes", [[], [7]])  # between the checkpoint of step 6, after W&B started, and a record
def test_the_start_of_wandb_slows_no_record(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashes: list[int]
) -> None:
    clock = clock_of_seconds(monkeypatch)

    def slow_start(tracker: object, cell_dir: Path, records: object) -> None:
        clock.now += 100

    monkeypatch.setattr(callbacks.Tracker, "start", slow_start)
    cell = new_cell([*small, "train.log_every=4"], tmp_path)
    for step in crashes:
        with pytest.raises(Crash):
            run_with(cell, CrashAt(step))
    assert run_with(cell)
    first, *records = metrics_log.read(cell.directory / "metrics.jsonl")
    assert first["tokens_per_second"] is None
    assert [record["step"] for record in records] == [4, 8, 12]
    assert {record["tokens_per_second"] for record in records} == {2 * 32 / 1.0}
    assert records[-1]["seconds"] == 12 + 100 * (1 + len(crashes)), "the wall time has them"
