"""Real processes, really killed: what the finished experiment holds must not depend on it."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator import job, monitoring
from orchestrator.common.errors import STOPPED
from orchestrator.config import schema
from orchestrator.config.compose import CONF, compose
from orchestrator.schedulers.scheduler import Scheduler
from orchestrator.status import main as status_main
from orchestrator.storage import checkpoint, lease, locks, metrics_log
from orchestrator.storage.event_log import EventLog
from tests.naming import names
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.slow

ARMS = ("name=pair", "++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "seeds=[0]")
LONGER = ("train.steps=120", "train.checkpoint_every=20", "forensics.every=60")


def start(overrides: list[str], log: Path, arms: Sequence[str] = ARMS) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "orchestrator", *arms, *overrides]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def cell_process(directory: Path, cell: str) -> int | None:
    """Process id of the running cell: the child of its job's controller."""
    entry = EventLog(directory).last().get(cell)
    if entry is None or entry.state != "running":
        return None
    children = Path(f"/proc/{entry.job}/task/{entry.job}/children").read_text().split()
    return int(children[0]) if children else None


def step_reached(directory: Path, cell: str, step: int) -> Callable[[], bool]:
    path = directory / cell / "metrics.jsonl"
    return lambda: any(record["step"] >= step for record in metrics_log.backwards(path))


def final_weights(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.glob("*/seed=*/checkpoints/step_00000120/model.safetensors"))
    }


@pytest.fixture
def leftovers(tmp_path: Path) -> Iterator[None]:
    """Whatever a failing test leaves running ends with it."""
    yield
    for events in tmp_path.glob("*/*/events.jsonl"):
        for record in metrics_log.read(events):
            pid = record["job"]
            with suppress(OSError):  # the controller, which ends its cell with itself; its number may be another's now
                if pid.isdigit() and b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGTERM)


@pytest.mark.usefixtures("leftovers")
def test_killed_cells_and_a_killed_launcher_change_nothing(small_cell: tuple[str, ...], tmp_path: Path) -> None:
    overrides = [*small_cell, *LONGER, "launcher.retries=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start([*overrides, f"root={whole}"], tmp_path / "whole.log").wait(PATIENCE) == 0, (
        tmp_path / "whole.log"
    ).read_text()
    expected = final_weights(whole / "pair")
    assert len(expected) == 2

    digests = [
        {r["step"]: r["digest"] for r in metrics_log.read(whole / "pair" / cell / "metrics.jsonl")}
        for cell in ("a/seed=0", "b/seed=0")
    ]
    assert digests[0] == digests[1], "both arms saw the same batches"

    log, directory = tmp_path / "broken.log", broken / "pair"
    first = start([*overrides, f"root={broken}"], log)
    wait_for(step_reached(directory, "a/seed=0", 30))
    victim = cell_process(directory, "a/seed=0")
    assert victim is not None
    os.kill(victim, signal.SIGKILL)  # one cell dies and, as retries are off here, is not tried again; the other goes on
    assert first.wait(PATIENCE) == 2
    last = EventLog(directory).last()
    assert last["a/seed=0"].state == "failed"
    assert names(last["a/seed=0"].reason, "killed", f"jobs/{last['a/seed=0'].job}_0_log.err")
    assert last["b/seed=0"].state == "done"
    assert "a/seed=0 failed" in log.read_text()

    second = start([*overrides, f"root={broken}"], log)  # resumes the dead cell, then the launcher dies
    wait_for(lambda: cell_process(directory, "a/seed=0") is not None)
    second.kill()
    second.wait()
    third = start([*overrides, f"root={broken}"], log)  # finds the orphan, or what it left
    assert third.wait(PATIENCE) == 0, log.read_text()

    assert final_weights(directory) == expected
    for cell in ("a/seed=0", "b/seed=0"):
        steps = [r["step"] for r in metrics_log.read(directory / cell / "metrics.jsonl")]
        assert steps == [r["step"] for r in metrics_log.read(whole / "pair" / cell / "metrics.jsonl")]
    assert any(re.search(r"resumed at step \d", r["reason"]) for r in metrics_log.read(directory / "events.jsonl"))

    finished = (directory / "events.jsonl").read_bytes()
    assert start([*overrides, f"root={broken}"], log).wait(PATIENCE) == 0
    assert names(log.read_text(), "Nothing is left")
    assert (directory / "events.jsonl").read_bytes() == finished


@pytest.mark.usefixtures("leftovers")
def test_an_interrupt_saves_every_cell_and_a_second_launcher_is_refused(
    small_cell: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = [*small_cell, *LONGER, "train.steps=100000", f"root={tmp_path}/out"]
    log, directory = tmp_path / "log", tmp_path / "out/pair"
    launcher = start(overrides, log)
    wait_for(step_reached(directory, "a/seed=0", 10))
    rival = subprocess.run(
        [sys.executable, "-m", "orchestrator", *ARMS, *overrides], capture_output=True, text=True, timeout=PATIENCE
    )
    assert rival.returncode == 2
    assert names(rival.stderr, directory, "another process")
    os.killpg(launcher.pid, signal.SIGINT)  # Ctrl-C reaches the whole group
    assert launcher.wait(PATIENCE) == 130, log.read_text()
    for cell in monitoring.read_status(directory):
        assert cell.state in ("stopped", "next")
        if cell.state == "stopped":
            newest, _ = checkpoint.newest(directory / cell.cell / "checkpoints")
            assert newest is not None
            assert 0 <= checkpoint.step_of(newest) - cell.step < 2  # log_every: no step was lost
    assert STOPPED in log.read_text()


@pytest.mark.usefixtures("leftovers")
def test_an_interrupt_while_cells_start_or_wait_stops_them(small_cell: tuple[str, ...], tmp_path: Path) -> None:
    """One cell is held by another process, as by one that outlived its launcher; the other has just been submitted."""
    overrides = [*small_cell, *LONGER, "train.steps=100000", f"root={tmp_path}/out"]
    log, directory = tmp_path / "log", tmp_path / "out/pair"
    with lease.hold(directory / "a/seed=0"):
        launcher = start(overrides, log)
        wait_for(lambda: "b/seed=0" in EventLog(directory).last() or len(Scheduler.slots(_config(small_cell))) == 1)
        os.killpg(launcher.pid, signal.SIGINT)
        assert launcher.wait(PATIENCE) == 130, log.read_text()
    assert "failed" not in {entry.state for entry in EventLog(directory).last().values()}
    assert not list(metrics_log.backwards(directory / "a/seed=0/metrics.jsonl"))


@pytest.mark.usefixtures("leftovers")
def test_an_interrupt_ends_a_whole_multirun(small_cell: tuple[str, ...], tmp_path: Path) -> None:
    log = tmp_path / "log"
    long = ["train.steps=100000", "optim.lr=0.001,0.002", "launcher=debug"]
    launcher = start([*small_cell, *long, f"root={tmp_path}/out", "-m"], log)
    wait_for(lambda: any(any(metrics_log.backwards(p)) for p in tmp_path.glob("out/*/a/seed=0/metrics.jsonl")))
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(PATIENCE) == 130, log.read_text()
    assert [p.name for p in tmp_path.glob("out/pair*")] == ["pair__optim.lr=0.001"]


def test_a_full_disk_is_one_sentence_from_end_to_end(small_cell: tuple[str, ...], tmp_path: Path) -> None:
    """The kernel refuses files over 100 kB: the first checkpoint with moments, and the comparison's figures."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "orchestrator", *small_cell, "launcher=debug", "name=x", f"root={tmp_path}/out"]
    env = {**os.environ, "GIT_DIR": str(tmp_path)}  # else experiment.yaml holds whatever is not committed
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, cwd=tmp_path, env=env)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "main/seed=0 failed: " in result.stderr
    assert names(result.stderr, "step_00000004", "File too large")
    checkpoints = tmp_path / "out/x/main/seed=0/checkpoints"
    assert checkpoint.newest(checkpoints) == (checkpoint.path_of(checkpoints, 0), [])
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def _config(overrides: Sequence[str]) -> schema.Config:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides)


@pytest.mark.parametrize(
    ("visible", "parallel", "expected"),
    [(None, None, ["0", "1"]), ("5,2", None, ["5", "2"]), ("GPU-ab,GPU-cd", 3, ["GPU-ab", "GPU-cd", "GPU-ab"])],
)
def test_slots_name_the_gpus_this_process_may_see(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, parallel: int | None, expected: list[str]
) -> None:
    """The only faked part is the machine: two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = schema.Config()
    config.launcher.parallel = parallel
    assert Scheduler.slots(config) == expected


def test_slots_on_the_cpu_are_cores_over_threads() -> None:
    config = schema.Config()
    config.train.device, config.train.threads = schema.Device.cpu, 1
    cores = len(os.sched_getaffinity(0))
    assert Scheduler.slots(config) == [None] * cores
    config.train.threads = 2 * cores
    assert Scheduler.slots(config) == [None]


def test_status_tells_a_lost_cell_from_one_that_runs(
    tmp_path: Path, small: list[str], orchestrate: Callable[..., int]
) -> None:
    assert orchestrate(*small, "launcher=debug", "name=x", "train.steps=4") == 0
    directory = tmp_path / "outputs/x"
    for state in ("submitted", "running"):
        EventLog(directory).append("main/seed=0", state, attempt=2)
        assert monitoring.read_status(directory)[0].state == "lost"
        with lease.hold(directory / "main/seed=0"):
            assert monitoring.read_status(directory)[0].state == "running"
    EventLog(directory).append("main/seed=0", "submitted", attempt=3)
    with locks.hold(locks.of_launcher(directory)):
        assert monitoring.read_status(directory)[0].state == "queued"


def test_status_of_no_experiment_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_main([str(tmp_path)]) == 2
    assert names(capsys.readouterr().err, tmp_path, "no experiment")


def test_a_cell_can_be_run_by_itself(
    orchestrate: Callable[..., int], small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that a job runs also works in a job script written by hand."""
    assert orchestrate(*small, "launcher=debug", "name=x", "train.steps=4", "forensics.every=4") == 0
    cell = tmp_path / "outputs/x/main/seed=0"
    (tmp_path / "outputs/x/events.jsonl").unlink()
    assert job.main([str(cell)]) == 0
    assert EventLog(cell.parents[1]).last()["main/seed=0"].reason == ""
    assert [e["state"] for e in metrics_log.read(tmp_path / "outputs/x/events.jsonl")] == ["running", "done"]
    assert job.main([str(tmp_path)]) == 2
    assert names(capsys.readouterr().err, tmp_path, "config.yaml")


def test_a_job_touches_no_gpu_before_it_knows_its_own() -> None:
    """CUDA reads CUDA_VISIBLE_DEVICES once: `Job` sets it, so nothing imported before may have asked."""
    script = (
        "import torch\n"
        "def touched(*_): raise SystemExit('CUDA was touched')\n"
        "torch._C._cuda_getDeviceCount = touched\n"
        "for name in ('is_available', 'device_count', 'init', '_lazy_init'): setattr(torch.cuda, name, touched)\n"
        "import submitit.core.submission, orchestrator.job\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
