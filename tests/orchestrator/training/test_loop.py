"""A cell is trained once, however often it is interrupted."""

from __future__ import annotations

import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from orchestrator.common.errors import UserError
from orchestrator.experiments.experiment import Cell
from orchestrator.experiments.readings import Readings
from orchestrator.forensics.analyzer import analyze
from orchestrator.jobs.readers import reader_for
from orchestrator.storage import checkpoint
from orchestrator.training.loop import StopSignal, train_cell
from orchestrator.training.trainer import Callback, Trainer
from tests.naming import names, naming
from tests.orchestrator.training.cells import (
    Crash,
    CrashAt,
    SignalAt,
    complete,
    fingerprints,
    new_cell,
    rows,
    run_with,
)


@pytest.mark.parametrize("crashes", [[1], [5, 7], [4, 6, 11]])
def test_resuming_is_bitwise(whole: Cell, small: list[str], tmp_path: Path, crashes: list[int]) -> None:
    cell = new_cell(small, tmp_path)
    for step in crashes:
        with pytest.raises(Crash):
            run_with(cell, CrashAt(step))
    assert complete(cell)
    assert fingerprints(cell) == fingerprints(whole)
    assert rows(cell) == rows(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_stops_at_the_step_boundary_with_a_checkpoint(
    whole: Cell, small: list[str], tmp_path: Path, number: int
) -> None:
    cell = new_cell(small, tmp_path)
    assert run_with(cell, SignalAt(5, number)) is False
    newest, warnings = checkpoint.newest(cell.directory / "checkpoints")
    assert newest is not None
    assert checkpoint.step_of(newest) == 5
    assert warnings == []
    assert complete(cell)
    final = "checkpoints/step_00000012/model.safetensors"
    assert fingerprints(cell)[final] == fingerprints(whole)[final]
    assert rows(cell) == rows(whole)


def test_a_corrupt_checkpoint_is_set_aside_and_the_run_ends_the_same(
    whole: Cell, small: list[str], tmp_path: Path
) -> None:
    cell = new_cell(small, tmp_path)
    with pytest.raises(Crash):
        run_with(cell, CrashAt(9))
    corrupt = checkpoint.path_of(cell.directory / "checkpoints", 8) / "optimizer.safetensors"
    corrupt.write_bytes(corrupt.read_bytes()[:-1] + b"\x7f")
    heard: list[tuple[int, list[str]]] = []
    with StopSignal() as stop:
        assert train_cell(cell.directory, stop, reader_for, 2, lambda run, warnings: heard.append((run.step, warnings)))
    assert heard[0][0] == 6
    assert names(heard[0][1][0], "step_00000008", "optimizer.safetensors")
    assert (cell.directory / "checkpoints/step_00000008.corrupt-0").is_dir()
    assert fingerprints(cell) == fingerprints(whole)
    assert rows(cell) == rows(whole)


def test_a_run_begins_again_where_no_state_is_left_to_resume_from(
    whole: Cell, small: list[str], tmp_path: Path
) -> None:
    """The one checkpoint that has its state is corrupt; the others were reduced to their weights, and are set aside."""
    cell = new_cell([*small, "train.keep_states=1"], tmp_path)
    with pytest.raises(Crash):
        run_with(cell, CrashAt(9))
    checkpoints, readings = cell.directory / "checkpoints", Readings(cell.directory, cell.config)
    for path in readings.unread():  # which training would have spared
        readings.read(path)
    checkpoint.prune(checkpoints, None, 1)
    *older, newest = checkpoint.saved(checkpoints)
    assert [checkpoint.is_reduced(path) for path in older] == [True, True, True]
    assert not readings.unread(), "a reduced checkpoint stays read"
    (newest / "optimizer.safetensors").unlink()
    heard: list[tuple[int, list[str]]] = []
    with StopSignal() as stop:
        assert train_cell(cell.directory, stop, reader_for, 2, lambda run, warnings: heard.append((run.step, warnings)))
    ((step, (corrupt, reduced)),) = heard
    assert step == 0
    assert names(corrupt, "step_00000008", "optimizer.safetensors")
    assert names(reduced, "3 older checkpoints", "train.keep_states")
    assert (checkpoints / "step_00000006.replaced-0").is_dir()
    assert (checkpoints / "step_00000008.corrupt-0").is_dir()
    kept = {name: digest for name, digest in fingerprints(whole).items() if (cell.directory / name).exists()}
    assert fingerprints(cell) == kept
    assert {name for name in kept if "model" in name or "forensics" in name} == {
        name for name in fingerprints(whole) if "model" in name or "forensics" in name
    }
    assert rows(cell) == rows(whole)


def test_a_launch_that_keeps_fewer_frees_room_before_it_saves(small: list[str], tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run_with(new_cell([*small, "train.keep_states=null"], tmp_path), CrashAt(9))
    cell = new_cell([*small, "train.keep_states=1"], tmp_path)
    path = checkpoint.path_of(cell.directory / "checkpoints", 4)
    assert not checkpoint.is_reduced(path)
    with pytest.raises(Crash):
        run_with(cell, CrashAt(9))
    assert checkpoint.is_reduced(path)


def test_a_reading_does_not_outlive_its_checkpoint(whole: Cell, small: list[str], tmp_path: Path) -> None:
    cell = new_cell(small, tmp_path)
    assert complete(cell)
    last = checkpoint.path_of(cell.directory / "checkpoints", 12)
    (last / "model.safetensors").write_bytes(b"")
    (cell.directory / "forensics/step_00000012.json").write_text("{}")
    assert complete(cell)
    assert (cell.directory / "forensics/step_00000012.json.replaced").read_text() == "{}"
    assert fingerprints(cell) == fingerprints(whole)


def test_a_checkpoint_between_readings_has_no_old_trace(whole: Cell) -> None:
    traces = {
        checkpoint.step_of(path): checkpoint.read_state(path)["trace"]
        for path in checkpoint.saved(whole.directory / "checkpoints")
    }
    assert {step: len(next(iter(trace.values()), [])) for step, trace in traces.items()} == {
        0: 0,
        4: 0,
        6: 2,
        8: 0,
        12: 2,
    }
    path = checkpoint.path_of(whole.directory / "checkpoints", 8)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = checkpoint.read_tensors(path, "model")[name].double()
    momentum = checkpoint.read_tensors(path, "optimizer")[f"{name}.exp_avg"].double()
    expected = -(weight * momentum).sum() / weight.norm() / momentum.norm()
    measured = analyze(path).layers[1].measures["momentum_alignment.down"]
    assert measured == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("override", ["optim=wsd", "train.precision=bf16", "model.norm=pre", "model.queries_per_kv=2"])
def test_every_kind_of_cell_trains(small: list[str], tmp_path: Path, override: str) -> None:
    cell = new_cell([*small, override], tmp_path)
    assert complete(cell)
    before, after = rows(cell)[0]["heldout"], rows(cell)[-1]["heldout"]
    assert all(after[domain] < before[domain] for domain in before)
    tensors = checkpoint.read_tensors(checkpoint.path_of(cell.directory / "checkpoints", 12), "model")
    assert {t.dtype for t in tensors.values()} == {torch.float32}, "masters are fp32 whatever the precision"


def test_a_loss_that_leaves_the_numbers_ends_the_cell(small: list[str], tmp_path: Path) -> None:
    cell = new_cell([*small, "optim.weight_decay=0", "optim.lr=1e36", "optim.warmup_steps=0"], tmp_path)
    with pytest.raises(UserError, match=r"\b(nan|inf)\b.* step \d.*optim\.lr"):
        complete(cell)
    newest, _ = checkpoint.newest(cell.directory / "checkpoints")
    assert newest is not None
    tensors = checkpoint.read_tensors(newest, "model")
    assert all(torch.isfinite(t).all() for t in tensors.values())


class FullDiskFrom(Callback):
    """From `step` on the kernel refuses files over 20 kB, as a full disk would: no checkpoint fits."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Trainer) -> None:
        if run.step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def test_a_full_disk_ends_the_cell_and_costs_nothing(whole: Cell, small: list[str], tmp_path: Path) -> None:
    cell = new_cell(small, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UserError, match=naming("step_00000006", "File too large")):
            run_with(cell, FullDiskFrom(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    newest, warnings = checkpoint.newest(cell.directory / "checkpoints")
    assert newest == checkpoint.path_of(cell.directory / "checkpoints", 4)
    assert warnings == []
    assert complete(cell)
    assert fingerprints(cell) == fingerprints(whole)
    assert rows(cell) == rows(whole)


def test_explicit_equal_widths_train_to_the_same_bits(whole: Cell, small: list[str], tmp_path: Path) -> None:
    cell = new_cell([*small, "width=explicit", "width.widths=[16,16,16]"], tmp_path)
    assert complete(cell)
    assert fingerprints(cell) == fingerprints(whole)
    assert rows(cell) == rows(whole)


def test_a_run_whose_data_changed_goes_on_with_its_corpus_or_is_refused(small: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {i} says {i * i}" for i in range(2000)))
    cache = tmp_path / ".data"
    files = [*small, "data=files", f"data.domains.text.path={text}", f"data.cache_dir={cache}"]
    cell = new_cell(files, tmp_path)
    with pytest.raises(Crash):
        run_with(cell, CrashAt(5))
    text.write_text("\n".join(f"another {i} says {i + i}" for i in range(2000)))
    cache.rename(tmp_path / "kept")
    with pytest.raises(UserError, match=naming("data.domains.*", f"data.cache_dir={cache}")):
        complete(cell)
    shutil.rmtree(cache)
    (tmp_path / "kept").rename(cache)
    assert complete(cell)
    assert len([*cache.glob("*/meta.json")]) == 1


def test_accumulated_micro_batches_are_the_whole_batch(small: list[str], tmp_path: Path) -> None:
    whole, parts = (
        new_cell([*small, "train.batch_size=4", f"name={name}", *extra], tmp_path)
        for name, extra in (("a", []), ("b", ["train.micro_batch_size=1"]))
    )
    for cell in (whole, parts):
        assert complete(cell)
    first, second = rows(whole), rows(parts)
    assert [r["digest"] for r in first] == [r["digest"] for r in second]
    assert [r["loss"] for r in second[1:]] == pytest.approx([r["loss"] for r in first[1:]], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_in_bf16_masters_stay_fp32_and_resume_goes_on(small: list[str], tmp_path: Path) -> None:
    cell = new_cell([*small, "train.device=cuda"], tmp_path)
    with pytest.raises(Crash):
        run_with(cell, CrashAt(7))
    assert complete(cell)
    newest, _ = checkpoint.newest(cell.directory / "checkpoints")
    assert newest is not None
    tensors = checkpoint.read_tensors(newest, "model") | checkpoint.read_tensors(newest, "optimizer")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert [r["step"] for r in rows(cell)] == [0, 2, 4, 6, 8, 10, 12]


def test_training_learns(small: list[str], tmp_path: Path) -> None:
    cell = new_cell(
        [*small, "train.steps=80", "optim.lr=0.01", "forensics.every=80", "train.checkpoint_every=80"],
        tmp_path,
    )
    assert complete(cell)
    records = rows(cell)
    for domain, before in records[0]["heldout"].items():
        assert records[-1]["heldout"][domain] < before - 1.0
