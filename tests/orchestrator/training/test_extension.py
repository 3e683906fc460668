"""A run that is extended by a larger `train.steps` is bit for bit the run that had these steps from the start."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.storage import checkpoint, lease, metrics_log
from orchestrator.training.compute import Compute
from tests.naming import naming
from tests.orchestrator.training.cells import Crash, CrashAt, complete, fingerprints, new_cell, rows, run_with

CONSTANT = ("optim.schedule=constant", "optim.warmup_steps=3")
WSD = ("optim.schedule=wsd", "optim.decay_fraction=0.4", "optim.warmup_steps=3")
DECIDING = ("sidecar.interval=3", "sidecar.warmup=0", "sidecar.sigma=1.0")
SHORT, LONG = 9, 16  # 9: no multiple of any period of these cells, but one at which a sidecar would decide


@pytest.mark.parametrize(
    ("options", "begins", "crash"),
    [
        (CONSTANT, SHORT, None),
        (CONSTANT, SHORT, 12),
        (WSD, 5, 12),  # 9 less the 4 steps that decayed
        ((*CONSTANT, "sidecar=decay", *DECIDING), SHORT - 1, None),
        ((*WSD, "sidecar=all", *DECIDING), 5, 12),
    ],
)
def test_extending_is_bitwise(
    small: list[str], tmp_path: Path, options: Sequence[str], begins: int, crash: int | None
) -> None:
    overrides = [*small, *options, "train.keep_states=null"]
    whole = new_cell([*overrides, f"train.steps={LONG}", "name=whole"], tmp_path)
    assert complete(whole)
    short = new_cell([*overrides, f"train.steps={SHORT}", "name=part"], tmp_path)
    assert complete(short)
    before, end = rows(short), checkpoint.path_of(short.directory / "checkpoints", SHORT)

    part = new_cell([*overrides, f"train.steps={LONG}", "name=part"], tmp_path)
    if crash is not None:
        with pytest.raises(Crash):
            run_with(part, CrashAt(crash))
    assert complete(part)

    expected, found = fingerprints(whole), fingerprints(part)
    assert {name: found[name] for name in expected} == expected
    more = {int(name.split("step_")[1][:8]) for name in found.keys() - expected.keys()}
    assert more <= {SHORT, begins}, "only what the shorter run saved besides"
    if begins == SHORT:
        (ended,) = (row for row in rows(part) if row["step"] == SHORT)
        assert ended == before[-1], "its record stays, test loss and all"
        assert [row for row in rows(part) if row is not ended and row != ended] == rows(whole)
    else:
        assert rows(part) == rows(whole)
        aside = metrics_log.read(part.directory / "metrics.replaced.jsonl")
        assert before[-1]["test"] in [row.get("test") for row in aside]
        assert end.with_name(f"{end.name}.replaced-0").is_dir()
        assert (part.directory / "forensics/step_00000009.json.replaced").is_file()


def test_twice_extended_loses_nothing(small: list[str], tmp_path: Path) -> None:
    """The ends of both shorter runs decayed through the same steps; both are kept."""
    for steps in (10, 11, 12):
        cell = new_cell([*small, *WSD, "name=x", f"train.steps={steps}", "forensics.every=1"], tmp_path)
        assert complete(cell)
    aside = sorted(path.name for path in cell.directory.glob("forensics/*.replaced*"))
    assert aside == [
        "step_00000007.json.replaced", "step_00000008.json.replaced", "step_00000008.json.replaced-1",
        "step_00000009.json.replaced", "step_00000009.json.replaced-1", "step_00000010.json.replaced",
        "step_00000010.json.replaced-1", "step_00000011.json.replaced",
    ]  # fmt: skip


def test_what_cannot_be_extended_is_refused_with_the_cure(small: list[str], tmp_path: Path) -> None:
    def launch(name: str, steps: int, *options: str) -> Path:
        cell = new_cell([*small, f"name={name}", f"train.steps={steps}", *options], tmp_path)
        return cell.directory

    cosine = launch("cosine", 8)
    launch("cosine", 9)  # nothing has been trained
    assert load.from_file(cosine / "config.yaml").train.steps == 9
    assert complete(new_cell([*small, "name=cosine", "train.steps=9"], tmp_path))
    with pytest.raises(UserError, match=naming("train.steps=12", cosine, "optim.schedule=cosine", "branch=")):
        launch("cosine", 12)
    with pytest.raises(UserError, match=naming(cosine, "train.steps", "9", "8")):
        launch("cosine", 8)

    assert complete(new_cell([*small, *WSD, "name=wsd", "train.steps=10"], tmp_path))
    for path in checkpoint.saved(launch("wsd", 10, *WSD) / "checkpoints")[:-1]:
        checkpoint.reduce(path)
    with pytest.raises(UserError, match=naming("train.steps=12", "wsd", "step 6", "branch=")):
        launch("wsd", 12, *WSD)

    assert complete(new_cell([*small, *CONSTANT, "name=held", "train.steps=6"], tmp_path))
    with (
        lease.hold(launch("held", 6, *CONSTANT), "1", 0),
        pytest.raises(UserError, match=naming("train.steps=8", "held", "stop it")),
    ):
        launch("held", 8, *CONSTANT)


def test_a_trained_cell_without_checkpoints_is_not_extended_and_keeps_its_log(small: list[str], tmp_path: Path) -> None:
    overrides = [*small, *CONSTANT, "name=x"]
    cell = new_cell([*overrides, "train.steps=6"], tmp_path)
    assert complete(cell)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.parent.name != "checkpoints"]
    before = {path: path.read_bytes() for path in kept}
    shutil.rmtree(cell.directory / "checkpoints")
    with pytest.raises(UserError, match=naming("train.steps=12", cell.directory, "no checkpoint", "name=...", "6")):
        new_cell([*overrides, "train.steps=12"], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not new_cell([*overrides, "train.steps=6"], tmp_path).directory.joinpath("checkpoints").exists()


def test_a_cell_that_crashed_before_its_first_update_may_still_change(small: list[str], tmp_path: Path) -> None:
    overrides = [*small, "name=x"]
    cell = new_cell([*overrides, "train.steps=6"], tmp_path)
    metrics_log.append(cell.directory / "metrics.jsonl", {"step": 0, "seconds": 0.1})  # and no checkpoint yet
    assert complete(new_cell([*overrides, "train.steps=8"], tmp_path))


def test_a_run_goes_on_with_other_micro_batches_but_not_in_another_precision(small: list[str], tmp_path: Path) -> None:
    whole = new_cell([*small, "name=whole"], tmp_path)
    assert complete(whole)
    with pytest.raises(Crash):
        run_with(new_cell([*small, "name=x"], tmp_path), CrashAt(7))
    cell = new_cell([*small, "name=x", "train.micro_batch_size=1"], tmp_path)
    assert complete(cell)
    ends = [row["test"]["code"] for one in (whole, cell) for row in rows(one)[-1:]]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)

    newest = cell.directory / "checkpoints/step_00000012"
    saved = checkpoint.read_state(newest)["precision"]
    Compute(torch.device("cpu"), bf16=False, compiled=False).check_precision(saved, newest)
    with pytest.raises(UserError, match=naming(newest, "fp32", "bf16", "train.device")):
        Compute(torch.device("cuda"), bf16=True, compiled=False).check_precision(saved, newest)
