"""Every due checkpoint is read once, by whoever comes first, and training does not wait for it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Timer

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator import monitoring
from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.config.compose import CONF, compose
from orchestrator.config.schema import Config
from orchestrator.experiments.experiment import experiment_of
from orchestrator.experiments.readings import Readings
from orchestrator.experiments.run_directory import open_directory
from orchestrator.jobs import read_checkpoints, worker
from orchestrator.jobs.readers import BesideProcess, InThread, reader_for
from orchestrator.monitoring.alerts import alerts
from orchestrator.storage import checkpoint, lease, locks, metrics_log
from orchestrator.training.callbacks import ReadLayers, callbacks_for
from orchestrator.training.loop import StopSignal, train
from orchestrator.training.trainer import Callback, Trainer
from tests.waiting import PATIENCE, wait_for

DUE = ["step_00000000", "step_00000006", "step_00000012"]  # of a small cell


def new_cell(overrides: Sequence[str], root: Path) -> tuple[Path, Config]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = experiment_of([*overrides, f"root={root}"], compose)
        open_directory(experiment)
    return experiment.cells[0].directory, experiment.cells[0].config


@pytest.fixture(scope="module")
def trained(small_cell: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, _ = new_cell((*small_cell, "train.keep_states=null"), tmp_path_factory.mktemp("trained"))
    assert worker.run_job(path) == "done"
    return path


@pytest.fixture
def cell(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished cell and of its experiment's events."""
    shutil.copytree(trained.parents[1], tmp_path / "x")
    return tmp_path / "x" / trained.relative_to(trained.parents[1])


def readings_of(path: Path) -> Readings:
    return Readings(path, load.from_file(path / "config.yaml"))


def names(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "forensics").iterdir())


def read_with(path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "orchestrator.jobs.read_checkpoints", str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def waits_at(lock: Path, process: subprocess.Popen[str]) -> bool:
    try:
        return any(str(fd.readlink()) == str(lock) for fd in Path(f"/proc/{process.pid}/fd").iterdir())
    except FileNotFoundError:  # closed meanwhile
        return False


@contextmanager
def no_reading(path: Path) -> Iterator[Callable[[], None]]:
    """No reading of the cell gets done until what this yields is called, or training has hung for a while."""
    with ExitStack() as held:
        held.enter_context(locks.hold(path / ".readings.lock"))
        valve = Timer(20, held.close)
        valve.start()
        yield held.close
        valve.cancel()


def test_a_reading_is_filed_under_its_checkpoint_and_its_definitions(cell: Path) -> None:
    assert names(cell) == [f"{name}.json" for name in DUE]
    for name in DUE:
        found = json.loads((cell / "forensics" / f"{name}.json").read_text())
        manifest = (cell / "checkpoints" / name / "manifest.json").read_bytes()
        expected = {"checkpoint": hashlib.sha256(manifest).hexdigest(), "definitions": found["definitions"]}
        assert found["key"] == expected
    assert readings_of(cell).unread() == []
    assert worker.is_finished(cell)


def older_definitions(cell: Path) -> None:
    reading = cell / "forensics" / f"{DUE[1]}.json"
    found = json.loads(reading.read_text())
    found["key"]["definitions"] -= 1
    reading.write_text(json.dumps(found))


def rewritten_checkpoint(cell: Path) -> None:
    manifest = cell / "checkpoints" / DUE[1] / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text())))


def no_key(cell: Path) -> None:
    (cell / "forensics" / f"{DUE[1]}.json").write_text("{}")


def half_a_reading(cell: Path) -> None:
    (cell / "forensics" / f"{DUE[1]}.json").write_text('{"key": {"checkpoint"')


@pytest.mark.parametrize("outdate", [older_definitions, rewritten_checkpoint, no_key, half_a_reading])
def test_an_outdated_reading_is_replaced_and_kept(cell: Path, outdate: Callable[[Path], None]) -> None:
    others = {name: (cell / "forensics" / f"{name}.json").stat().st_mtime_ns for name in (DUE[0], DUE[2])}
    outdate(cell)
    before = (cell / "forensics" / f"{DUE[1]}.json").read_bytes()
    assert not worker.is_finished(cell)
    assert [p.name for p in readings_of(cell).unread()] == [DUE[1]]
    assert [p.stem for p in readings_of(cell).settled()] == [DUE[0]], "what follows it is out of turn"
    assert worker.run_job(cell) == "done"  # as the launcher would: nothing is left to train
    assert worker.is_finished(cell)
    assert (cell / "forensics" / f"{DUE[1]}.json.replaced").read_bytes() == before
    assert len(names(cell)) == 4
    assert others == {name: (cell / "forensics" / f"{name}.json").stat().st_mtime_ns for name in others}


def test_two_processes_read_each_checkpoint_once(cell: Path) -> None:
    shutil.rmtree(cell / "forensics")
    lock = cell / ".readings.lock"
    with locks.hold(lock):  # until both have seen that all is unread
        rivals = [read_with(cell), read_with(cell)]
        wait_for(lambda: all(waits_at(lock, rival) for rival in rivals))
    said = [rival.communicate(timeout=PATIENCE) for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0], said
    made = [Path(line).stem for out, _ in said for line in out.splitlines()]
    assert sorted(made) == DUE
    assert names(cell) == [f"{name}.json" for name in DUE]
    assert worker.is_finished(cell)


def test_a_deleted_checkpoint_keeps_its_reading(cell: Path) -> None:
    shutil.rmtree(cell / "checkpoints" / DUE[1])
    assert readings_of(cell).unread() == []
    assert [p.stem for p in readings_of(cell).settled()] == DUE


@pytest.mark.parametrize("harm", ["manifest.json", "bytes", "sha256"])
def test_a_corrupt_checkpoint_is_set_aside_rather_than_read(
    cell: Path, harm: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(cell / "forensics")
    victim = cell / "checkpoints" / DUE[1]
    weights = victim / "model.safetensors"
    content = weights.read_bytes()
    if harm.startswith("manifest"):
        (victim / "manifest.json").unlink()
    else:
        weights.write_bytes(content[:-1] + (b"" if harm.startswith("bytes") else bytes([content[-1] ^ 1])))
    assert read_checkpoints.main([str(cell)]) == 0
    assert [Path(line).stem for line in capsys.readouterr().out.splitlines()] == [DUE[0], DUE[2]]
    assert re.search(rf"{DUE[1]}\b.* corrupt .*{harm}", caplog.text)
    assert (cell / "checkpoints" / f"{DUE[1]}.corrupt-0").is_dir()
    assert worker.is_finished(cell)
    (seen,) = monitoring.read_status(cell.parents[1])
    assert any(f"{DUE[1]}.corrupt-0" in alert.text for alert in alerts(seen))


def test_a_reading_outlives_the_corruption_of_its_checkpoint(cell: Path) -> None:
    before = (cell / "forensics" / f"{DUE[1]}.json").read_bytes()
    (cell / "checkpoints" / DUE[1] / "manifest.json").unlink()
    assert read_checkpoints.main([str(cell)]) == 0
    assert (cell / "forensics" / f"{DUE[1]}.json").read_bytes() == before
    assert worker.is_finished(cell)


def test_where_there_is_no_cell_is_a_sentence(cell: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_checkpoints.main([str(cell / "nowhere")]) == 2
    assert f"{cell / 'nowhere' / 'config.yaml'}" in capsys.readouterr().err


def test_reading_in_a_thread_leaves_no_trace_in_torch(cell: Path) -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        )

    shutil.rmtree(cell / "forensics")
    before = state()
    found = readings_of(cell)
    reader = InThread(found)
    for path in found.unread():
        reader.add(path)
    while reader.is_busy():
        time.sleep(0.01)
    reader.close()
    assert state() == before
    assert found.unread() == []


class At(Callback):
    """Does something once, when it is called after `step`."""

    def __init__(self, step: int, act: Callable[[Trainer], object]) -> None:
        self.step, self.act = step, act

    def after_step(self, run: Trainer) -> None:
        if run.step == self.step:
            self.act(run)


def train_with(path: Path, config: Config, *callbacks: Callback) -> bool:
    with StopSignal() as stop, lease.hold(path):
        run = Trainer(config, path, 1, callbacks)
        run.resume()
        return train(run, stop)


def test_readings_change_no_bit_of_training(small: list[str], tmp_path: Path) -> None:
    read, config = new_cell([*small, "name=read", "forensics.every=1"], tmp_path)
    assert train_with(read, config, *callbacks_for(config, reader_for))
    assert len(names(read)) == 13
    alone, config = new_cell([*small, "name=alone"], tmp_path)
    assert train_with(alone, config, *(c for c in callbacks_for(config, reader_for) if not isinstance(c, ReadLayers)))
    assert not (alone / "forensics").exists()
    for stem in ("model", "optimizer"):
        one, other = (checkpoint.read_tensors(path / "checkpoints" / DUE[2], stem) for path in (read, alone))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [
        [r["loss"] for r in metrics_log.read(path / "metrics.jsonl") if r["step"] % 2 == 0] for path in (read, alone)
    ]
    assert losses[0] == losses[1]


def test_training_goes_on_and_spares_what_is_unread(small: list[str], tmp_path: Path) -> None:
    path, config = new_cell([*small, "train.keep_checkpoints=1"], tmp_path)
    seen: list[list[str]] = []

    def look(run: Trainer) -> None:
        assert not (path / "forensics").exists()
        seen.append([p.name for p in checkpoint.saved(run.files.checkpoints)])

    with no_reading(path) as release:
        free = At(10, lambda run: release())
        assert train_with(path, config, *callbacks_for(config, reader_for), At(7, look), At(10, look), free)
    assert seen == [DUE[:2], [*DUE[:2], "step_00000008"]]
    assert names(path) == [f"{name}.json" for name in DUE]
    assert [p.name for p in checkpoint.saved(path / "checkpoints")] == [DUE[0], DUE[2]]


def test_a_reading_that_fails_ends_the_cell_and_its_checkpoints_stand(small: list[str], tmp_path: Path) -> None:
    path, config = new_cell(small, tmp_path)
    with no_reading(path) as release:

        def harm(run: Trainer) -> None:
            (path / "forensics").write_text("in the way")
            release()

        callbacks = callbacks_for(config, reader_for)
        (layers,) = (c for c in callbacks if isinstance(c, ReadLayers))

        def hear(run: Trainer) -> None:
            assert isinstance(layers.reader, InThread)
            wait_for(layers.reader.asked[0].done)

        with pytest.raises(UserError, match=DUE[0]):
            train_with(path, config, *callbacks, At(7, harm), At(8, hear))
    assert next(metrics_log.backwards(path / "metrics.jsonl"))["step"] == 8, "the step after it heard of it"
    assert checkpoint.corruption(path / "checkpoints" / DUE[1]) is None


def test_a_signal_leaves_the_rest_to_the_next_attempt(small: list[str], tmp_path: Path) -> None:
    path, config = new_cell(small, tmp_path)
    with no_reading(path) as release:

        def stop(run: Trainer) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            release()

        assert not train_with(path, config, *callbacks_for(config, reader_for), At(7, stop))
    assert f"{DUE[2]}.json" not in names(path)
    assert worker.run_job(path) == "done"
    assert names(path) == [f"{name}.json" for name in DUE]


def readings_job(callbacks: Sequence[Callback]) -> BesideProcess:
    (reader,) = (c.reader for c in callbacks if isinstance(c, ReadLayers))
    assert isinstance(reader, BesideProcess)
    return reader


def test_a_job_that_dies_is_made_up_for_at_the_end(small: list[str], tmp_path: Path) -> None:
    path, config = new_cell([*small, "forensics=beside"], tmp_path)
    callbacks = callbacks_for(config, reader_for)

    def kill(run: Trainer) -> None:
        reader = readings_job(callbacks)
        stdout = reader.scheduler.log_of(reader.job).with_suffix(".out")
        wait_for(lambda: stdout.exists() and DUE[0] in stdout.read_text())  # it is at work
        reader.scheduler.cancel([reader.job])
        wait_for(lambda: reader.scheduler.states([reader.job])[reader.job].has_ended)

    assert train_with(path, config, *callbacks, At(2, kill))
    assert names(path) == [f"{name}.json" for name in DUE]
    log = readings_job(callbacks).scheduler.log_of(readings_job(callbacks).job)
    assert log.parent == path.parents[1] / "jobs"
    assert DUE[0] in log.with_suffix(".out").read_text()


def test_a_process_that_is_frozen_as_it_reads_is_not_waited_for_for_ever(
    cell: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.experiments.readings.PATIENCE_SECONDS", 0.3)
    with locks.hold(cell / ".readings.lock"):
        readings = Readings(cell, load.from_file(cell / "config.yaml"))
        (first, *_) = checkpoint.saved(cell / "checkpoints")
        readings.path_of(first).unlink()
        assert readings.read(first)
