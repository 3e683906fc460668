"""Several real processes that train one cell are compared with one that trains it alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

from orchestrator.common.errors import UserError
from orchestrator.config.compose import CONF, compose
from orchestrator.experiments.experiment import experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.jobs import worker
from orchestrator.jobs.readers import reader_for
from orchestrator.schedulers.scheduler import Scheduler
from orchestrator.storage import checkpoint, metrics_log
from orchestrator.storage.event_log import EventLog
from orchestrator.training import distributed, rendezvous
from orchestrator.training.callbacks import callbacks_for
from orchestrator.training.loop import StopSignal, train
from orchestrator.training.trainer import Callback, Trainer
from tests.naming import names, naming
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

CELL = (
    "name=pair", "train.device=cpu", "train.steps=50", "train.batch_size=4", "train.log_every=1", "train.eval_every=10",
    "train.checkpoint_every=20", "forensics.every=25", "optim.warmup_steps=5",
)  # fmt: skip
# Everything that does arithmetic on parameters, widths that two ranks cannot halve, and rows of validation left over.
PRESSED = (
    "sidecar=all", "sidecar.interval=5", "sidecar.warmup=1", "width=ramp", "train.micro_batch_size=2",
    "sidecar.features=[unit,log_norm,momentum_alignment,row_cv,progress]", "data.heldout_tokens=561",
)  # fmt: skip
# Nats per token. A step in two micro-batches differs from a whole one by up to 2.4e-5: rounding, which the first steps
# of Adam amplify. A wrong weight of one row differs by 1e-3 and more.
CURVE = 1e-4
APART = 2e-3  # relative norm of a tensor's difference after 50 steps; two micro-batches come to 5e-4


class SignalAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Trainer) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def new_cell(overrides: Sequence[str], root: Path) -> Path:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = experiment_of([*overrides, f"root={root}"], compose)
        open_directory(experiment)
    return experiment.cells[0].directory


def alone(cell: Path) -> None:
    assert worker.run_job(cell) == "done"


def together(cell: Path, *act: object) -> subprocess.CompletedProcess[str]:
    """Two ranks, forked in a process of their own; a rank that hangs fails the test."""
    script = Path(__file__).with_name("ranks_process.py")
    command = [sys.executable, script, cell, "2", *map(str, act)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def codes(cell: Path) -> list[int]:
    return json.loads((cell / "codes.json").read_text())


def torchrun(cell: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "orchestrator.job", str(cell)], capture_output=True, text=True, timeout=PATIENCE
    )


def records(cell: Path) -> list[dict[str, Any]]:
    return metrics_log.read(cell / "metrics.jsonl")


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number in a record, by where it stands."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in numbers(inner, f"{path}/{key}").items()}
    return {path: value} if isinstance(value, int | float) else {}


def assert_same_training(one: Path, two: Path, steps: int = 50) -> None:
    a, b = records(one), records(two)
    assert [r["step"] for r in a] == [r["step"] for r in b] == list(range(steps + 1))
    for x, y in zip(a, b, strict=True):
        assert x["digest"] == y["digest"]
        assert x["tokens"] == y["tokens"]
        for part in ("loss", "heldout", "test"):
            assert numbers(y.get(part)) == pytest.approx(numbers(x.get(part)), abs=CURVE)
        assert numbers(y.get("sidecar")) == pytest.approx(numbers(x.get("sidecar")), rel=1e-3, abs=CURVE)


def assert_same_files(one: Path, two: Path) -> None:
    found = [{p.relative_to(c).as_posix() for p in c.glob("[cf]*/**/*") if p.name != "codes.json"} for c in (one, two)]
    assert found[0] == found[1]
    start, end = (checkpoint.path_of(Path("checkpoints"), step) / "model.safetensors" for step in (0, 50))
    assert (one / start).read_bytes() == (two / start).read_bytes()
    for stem in sorted((one / end).parent.glob("*.safetensors")):
        a, b = load_file(stem), load_file(two / end.parent / stem.name)
        assert {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}
        for name, tensor in a.items():
            apart = (b[name].double() - tensor.double()).norm() / tensor.double().norm().clamp_min(1e-30)
            assert apart < APART, f"{stem.name} {name}"


def assert_same_readings(one: Path, two: Path) -> None:
    for step in (0, 25, 50):
        a, b = (json.loads((c / f"forensics/step_{step:08d}.json").read_text()) for c in (one, two))
        assert [layer["role"] for layer in a["layers"]] == [layer["role"] for layer in b["layers"]]
        for x, y in zip(a["layers"], b["layers"], strict=True):
            assert numbers(y["measures"]) == pytest.approx(numbers(x["measures"]), rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def cells(small_cell: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A new cell; `name` tells where. Their data is prepared once."""
    root = tmp_path_factory.mktemp("ranks")

    def new(name: str, *more: str) -> Path:
        return new_cell([*small_cell, *CELL, *more, f"data.cache_dir={root}/data"], root / name)

    return new


@pytest.fixture(scope="module")
def plain(cells: Callable[..., Path]) -> Path:
    """The cell without a sidecar, trained by one process."""
    cell = cells("plain")
    alone(cell)
    return cell


def test_two_ranks_train_what_one_does_sidecar_and_forensics_included(cells: Callable[..., Path]) -> None:
    one, two = cells("one", *PRESSED), cells("two", *PRESSED)
    done = torchrun(two)
    assert done.returncode == 0, done.stderr
    alone(one)
    assert_same_training(one, two)
    assert_same_files(one, two)
    assert_same_readings(one, two)
    assert any("sidecar" in record for record in records(two))
    assert [entry["state"] for entry in metrics_log.read(two.parents[1] / "events.jsonl")] == ["running", "done"]


@pytest.mark.parametrize("tied", ["true", "false"])
def test_ranks_with_a_chunked_head_loss_train_what_one_does_without(cells: Callable[..., Path], tied: str) -> None:
    head = ("sidecar=decay", "sidecar.interval=5", "sidecar.warmup=1", "width=ramp", f"model.tie_embeddings={tied}")
    one, two = cells(f"whole{tied}", *head), cells(f"chunks{tied}", *head)
    done = together(two, "chunk")
    assert done.returncode == 0, done.stderr
    alone(one)
    assert_same_training(one, two)


def test_compiled_layers_train_the_same_on_two_ranks_and_alone(cells: Callable[..., Path]) -> None:
    """Two shapes; micro-batches of what each rank has, whose kernels are then compiled once for all."""
    pressed = ("sidecar=all", "sidecar.interval=5", "sidecar.warmup=1", "width=ramp", "model.layers=2")
    plain, one, two = (
        cells(name, *pressed, *more)
        for name, more in (
            ("eager", ()),
            ("compiled", ("train.compile=true", "train.micro_batch_size=2")),
            ("compiled-ranks", ("train.compile=true",)),
        )
    )
    alone(plain)
    alone(one)
    assert_same_training(plain, one)
    done = together(two)
    assert done.returncode == 0, done.stderr
    assert_same_training(plain, two)


def test_the_launcher_starts_the_ranks(
    plain: Path, small_cell: tuple[str, ...], orchestrate: Callable[..., int], tmp_path: Path
) -> None:
    overrides = (*small_cell, *CELL, f"data.cache_dir={plain.parents[3]}/data", f"root={tmp_path}/out")
    assert orchestrate(*overrides, "launcher=local", "launcher.ranks=2") == 0
    cell = tmp_path / "out/pair/main/seed=0"
    assert_same_training(plain, cell)
    assert_same_files(plain, cell)
    assert_same_readings(plain, cell)
    logs = cell.parents[1] / "jobs"
    assert len(list(logs.glob("*_log.out"))) == 2
    assert not list(logs.glob("*.ranks"))  # where they met


def test_a_cell_goes_on_with_another_number_of_ranks_and_one_signal_stops_all(
    plain: Path, cells: Callable[..., Path]
) -> None:
    cell = cells("resumed")
    with StopSignal() as stop:
        config = worker._config_of(cell)
        run = Trainer(config, cell, 1, [*callbacks_for(config, reader_for), SignalAt(13)])
        run.resume()
        assert not train(run, stop)
    done = together(cell, "term", 1, 31)
    assert done.returncode == 0, done.stderr
    assert codes(cell) == [130, 130]
    assert [checkpoint.step_of(p) for p in checkpoint.saved(cell / "checkpoints")] == [0, 13, 20, 25, 31]
    assert EventLog(cell.parents[1]).last()["main/seed=0"].state == "stopped"
    alone(cell)
    assert_same_training(plain, cell)
    assert_same_readings(plain, cell)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others_and_the_cell_resumes(plain: Path, cells: Callable[..., Path], rank: int) -> None:
    cell = cells(f"killed-{rank}")
    done = together(cell, "kill", rank, 31)
    assert codes(cell)[rank] == -signal.SIGKILL
    assert codes(cell)[1 - rank] == 2
    assert distributed.LOST in done.stderr
    last = EventLog(cell.parents[1]).last()["main/seed=0"]
    assert (last.state, last.reason) == (
        ("running", "") if rank == 0 else ("crashed", f"RankError: {distributed.LOST}")
    )
    alone(cell)
    assert_same_training(plain, cell)


@pytest.mark.parametrize("rank", [0, 1])
def test_who_does_not_notice_that_another_failed_does_not_wait_for_ever(
    plain: Path, cells: Callable[..., Path], rank: int
) -> None:
    cell = cells(f"deaf-{rank}")
    done = together(cell, "deaf", rank, 31)
    assert codes(cell) == ([2, 1] if rank == 0 else [1, 2])
    why = "RuntimeError: CUDA out|another" if rank == 0 else "RuntimeError: CUDA out"  # 0 has the store
    assert re.search(f"Process {1 - rank} ends\\b.*failure: .*({why})", done.stderr)
    alone(cell)
    assert_same_training(plain, cell)


@pytest.mark.parametrize(
    ("act", "rank", "reason"), [("raise", 1, "rank 1 has something to say."), ("block", 0, "written")]
)
def test_the_error_of_one_rank_is_the_error_of_all_and_recorded_once(
    cells: Callable[..., Path], act: str, rank: int, reason: str
) -> None:
    cell = cells(act)
    done = together(cell, act, rank, 20)
    assert codes(cell) == [2, 2]
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    entries = metrics_log.read(cell.parents[1] / "events.jsonl")
    assert [entry["state"] for entry in entries] == ["running", "failed"]
    assert reason in entries[-1]["reason"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["launcher=debug", "launcher.ranks=2"], ["launcher.ranks=2", "launcher=local"]),
        (["launcher.ranks=3"], ["train.batch_size=4", "3 processes"]),
        (["launcher.ranks=2", "train.micro_batch_size=1"], ["train.micro_batch_size=1", "2 processes"]),
        (["launcher.ranks=0"], ["launcher.ranks=0", "positive"]),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_sentence(
    small: list[str],
    orchestrate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    named: list[str],
) -> None:
    assert orchestrate(*small, *CELL, *overrides) == 2
    error = capsys.readouterr().err.strip()
    assert names(error, *named)
    assert "\n" not in error


def test_a_job_of_too_many_ranks_is_refused_too(cells: Callable[..., Path]) -> None:
    cell = cells("many")
    config = worker._config_of(cell)
    with pytest.raises(UserError, match=naming("train.batch_size", "3 processes")):
        Trainer(config, cell, 1, [], world=distributed.World(0, 3))


def test_a_slot_has_a_gpu_for_every_rank(monkeypatch: pytest.MonkeyPatch, small: list[str]) -> None:
    """The only faked part is the machine: five GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose([*small, "launcher.ranks=2"])
    assert Scheduler.slots(config) == ["0,1", "2,3"]
    config.launcher.parallel = 3
    assert Scheduler.slots(config) == ["0,1", "2,3", "0,1"]
    config.launcher.ranks = 6
    with pytest.raises(UserError, match=naming("launcher.ranks=6", "5")):
        Scheduler.slots(config)


def test_a_shell_in_an_allocation_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a process in a Slurm job of four tasks that is not a task itself."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert rendezvous.this_rank() is None
    monkeypatch.setenv("SUBMITIT_FOLDER", "/tmp")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert rendezvous.this_rank() == (3, 4, 1)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_in_bf16_what_one_does(cells: Callable[..., Path]) -> None:
    more = (*PRESSED, "train.device=cuda", "train.precision=bf16")
    one, two = cells("gpu-one", *more), cells("gpu-two", *more)
    done = torchrun(two)
    assert done.returncode == 0, done.stderr
    alone(one)
    first, last = ((a, b) for a, b in (zip(records(one), records(two), strict=True)) if a["step"] in (0, 50))
    assert numbers(first[1]["heldout"]) == pytest.approx(numbers(first[0]["heldout"]), abs=1e-4)
    assert numbers(last[1]["heldout"]) == pytest.approx(numbers(last[0]["heldout"]), abs=0.02)
