"""Everything that a cluster does to a job, done to a cell: it must end with the weights of one that was left alone."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.experiments.run_directory import reopen
from orchestrator.launch import finalize
from orchestrator.schedulers import Slurm
from orchestrator.storage import lease, metrics_log
from orchestrator.storage.event_log import EventLog
from tests.cluster.conftest import Run
from tests.cluster.slurm import Cluster
from tests.naming import names
from tests.waiting import wait_for

pytestmark = pytest.mark.cluster

CELL = "main/seed=0"


def weights(directory: Path) -> str:
    (newest,) = sorted((directory / CELL / "checkpoints").glob("step_*"))[-1:]
    return newest.name + hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def states(directory: Path) -> list[str]:
    """The states that the cell went through."""
    return [record["state"] for record in EventLog(directory).of(CELL)]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, long_cell: Sequence[str]) -> Path:
    """The same cell, uninterrupted, outside of the cluster."""
    root = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "-m", "orchestrator", *long_cell, "launcher=debug", "name=x", f"root={root}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return root / "x"


Start = Callable[..., Path]


@pytest.fixture
def start(run: Run, long_cell: Sequence[str], tmp_path: Path) -> Start:
    """Submit the cell with more overrides; return its directory once it has trained a little."""

    def submit(*overrides: str, until: int = 100) -> Path:
        options = [*long_cell, "launcher=slurm", "launcher.backoff_seconds=1", "name=x", f"root={tmp_path}"]
        done = run("orchestrator", *options, *overrides)
        assert done.returncode == 0, done.stderr
        assert "1 cell with Slurm" in done.stdout
        if until:
            wait_for(lambda: step(tmp_path / "x") >= until)
        return tmp_path / "x"

    return submit


def step(directory: Path) -> int:
    newest = metrics_log.newest(directory / CELL / "metrics.jsonl")
    return newest["step"] if newest else -1


def job(directory: Path) -> str:
    return EventLog(directory).last()[CELL].job


@contextmanager
def frozen(directory: Path) -> Iterator[int]:
    """Stop the cell's process, whose id it yields, for the length of the block: it cannot end while a command starts,
    however slowly."""
    claim = lease.newest(directory / CELL)
    assert claim
    os.kill(claim.pid, signal.SIGSTOP)
    try:
        yield claim.pid
    finally:
        with suppress(ProcessLookupError):  # Slurm's own SIGCONT has let it end
            os.kill(claim.pid, signal.SIGCONT)


def announced(pid: int, number: int) -> bool:
    """True where the signal waits for the process, which is frozen, or where the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    pending = re.search(r"^ShdPnd:\s*(\w+)", status, re.MULTILINE)
    assert pending
    return bool(int(pending[1], 16) >> (number - 1) & 1)


def ends_as(whole: Path, directory: Path) -> None:
    """The cell is done, compared, and has the weights, records and readings of one that was left alone."""
    events = EventLog(directory)
    wait_for(lambda: (last := events.comparison()) and last.state in ("done", "failed"))
    assert events.last()[CELL].state == "done"
    assert weights(directory) == weights(whole)
    mine, theirs = (metrics_log.read(path / CELL / "metrics.jsonl") for path in (directory, whole))
    assert [(r["step"], r["loss"], r["digest"]) for r in mine] == [(r["step"], r["loss"], r["digest"]) for r in theirs]
    read = [sorted(p.name for p in (path / CELL / "forensics").iterdir()) for path in (directory, whole)]
    assert read[0] == read[1]
    assert (directory / "comparison/report.html").is_file()
    assert (directory / "comparison/verdict.json").is_file()


def test_preempted_by_a_higher_partition(cluster: Cluster, start: Start, run: Run, whole: Path) -> None:
    directory = start()
    ask = ("-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 4")
    urgent = cluster.run("sbatch", "--parsable", *ask)
    wait_for(lambda: states(directory)[-1] == "preempted")
    saved = step(directory)
    wait_for(lambda: cluster.state(urgent.strip()) == "RUNNING")
    told = run("orchestrator.status", str(directory)).stdout
    assert "1 preempted" in told
    assert "preempted once" in told
    wait_for(lambda: cluster.state(urgent.strip()) == "COMPLETED")
    ends_as(whole, directory)
    assert states(directory) == ["submitted", "running", "preempted", "running", "done"]
    resumed = re.search(r"resumed at step (\d+)", EventLog(directory).of(CELL)[3]["reason"])
    assert resumed
    assert int(resumed[1]) >= saved > 0


def test_requeued_by_an_operator(cluster: Cluster, start: Start, whole: Path) -> None:
    directory = start()
    with frozen(directory):
        cluster.run("scontrol", "requeue", job(directory))
    ends_as(whole, directory)
    assert states(directory) == ["submitted", "running", "preempted", "running", "done"]


def test_signalled(cluster: Cluster, start: Start, whole: Path) -> None:
    directory = start()
    with frozen(directory):
        cluster.run("scancel", "--signal=USR2", job(directory))
    ends_as(whole, directory)
    assert states(directory) == ["submitted", "running", "preempted", "running", "done"]


def test_cancelled_and_resumed(cluster: Cluster, start: Start, run: Run, whole: Path) -> None:
    directory = start()
    first = job(directory)
    with frozen(directory):
        done = run("orchestrator.status", str(directory), "--cancel")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: cluster.state(first) == "CANCELLED")
    told = run("orchestrator.status", str(directory)).stdout
    assert "1 stopped" in told
    assert (last := EventLog(directory).comparison())
    assert last.state == "stopped"
    assert states(directory) == ["submitted", "running", "stopped"]
    assert "Nothing runs" in run("orchestrator.status", str(directory), "--cancel").stdout
    assert "Nothing to resume" in run("orchestrator.status", str(directory), "--resume", "failed").stdout
    again = run("orchestrator.status", str(directory), "--resume")
    assert again.returncode == 0, again.stderr
    assert job(directory) != first
    ends_as(whole, directory)


def test_killed_cells_are_tried_again(start: Start, whole: Path) -> None:
    directory = start()
    claim = lease.newest(directory / CELL)
    assert claim
    os.kill(claim.pid, signal.SIGKILL)
    ends_as(whole, directory)
    assert states(directory) == ["submitted", "running", "crashed", "running", "done"]
    assert "SIGKILL" in EventLog(directory).of(CELL)[2]["reason"]


def test_cancelled_by_hand_and_forgotten_by_slurm(cluster: Cluster, start: Start, run: Run) -> None:
    """It is stopped for good: nobody who asks Slurm later, and is told of no such job, starts it again."""
    directory = start()
    with frozen(directory):
        cluster.run("scancel", job(directory))
    events = EventLog(directory)
    wait_for(lambda: (last := events.comparison()) and last.state in ("done", "failed"))
    assert states(directory) == ["submitted", "running", "stopped"]
    assert names(events.last()[CELL].reason, "cancelled", "SIGTERM")
    told = run("orchestrator.status", str(directory)).stdout
    assert "1 stopped" in told
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slurm, "states", lambda *_: {})
        assert finalize._to_try_again(reopen(directory), events) == ([], 0.0)


def test_what_always_dies_is_given_up(cluster: Cluster, start: Start, run: Run) -> None:
    """Too little memory to import torch, as long as it is tried."""
    directory = start("launcher.slurm.setup=['ulimit -v 400000']", until=0)
    wait_for(lambda: states(directory)[-1] == "failed")
    assert states(directory) == ["submitted", *["crashed"] * 3, "failed"]
    last = EventLog(directory).last()[CELL]
    assert names(last.reason, "3 times", "first checkpoint")
    told = run("orchestrator.status", str(directory)).stdout
    assert "1 failed" in told
    assert "MemoryError" in told or "failed to map" in told, told  # the end of its log
    assert cluster.state(job(directory)) == "FAILED"
    compares = EventLog(directory).comparison()
    assert compares
    wait_for(lambda: cluster.state(compares.job) == "FAILED")  # under the same limit
    told = run("orchestrator.status", str(directory)).stdout
    assert names(told, "comparison lost:", f"job {compares.job}", "FAILED")


def test_a_node_that_dies_and_what_it_left_alive(cluster: Cluster, start: Start, whole: Path) -> None:
    """Slurm gives the job to the other node, while its process on the first one, frozen until then, wakes up."""
    directory = start()
    claim = lease.newest(directory / CELL)
    assert claim
    node = cluster.run("squeue", "-h", "-j", job(directory), "-o", "%N").strip()
    os.kill(claim.pid, signal.SIGSTOP)
    cluster.kill_node(node)
    try:
        wait_for(lambda: states(directory)[-1] == "running" and states(directory).count("running") == 2)
        os.kill(claim.pid, signal.SIGCONT)
        ends_as(whole, directory)
    finally:
        cluster.start_node(node)
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    assert states(directory) == ["submitted", "running", "crashed", "running", "done"]
    log = (directory / f"jobs/{job(directory)}_0_log.err").read_text()
    assert "Attempt 1 of" in log


def test_the_time_limit(cluster: Cluster, start: Start, long_cell: Sequence[str], tmp_path: Path) -> None:
    """Two minutes, of which Slurm announces the end when fifty seconds are left: twice, long before the last step.

    The cell is frozen while it waits for that, and so uses no core.
    """
    directory = start(
        "launcher.timeout_hours=0.0333", "launcher.slurm.warning_seconds=50", "launcher.retries=100",
        "train.steps=100000", "forensics.every=100000", "train.checkpoint_every=100000",
    )  # fmt: skip

    def resumed() -> list[int]:
        """The steps at which attempts resumed that followed one which had trained."""
        events = EventLog(directory).of(CELL)
        saved = False
        found = []
        for before, record in pairwise(events):
            saved = saved or (before["state"], record["state"]) == ("running", "preempted")
            if saved and record["state"] == "running":
                found.append(int(record["reason"].split()[-1]))
                saved = False
        return found

    for _ in range(2):
        begun, ends = step(directory), states(directory).count("preempted")
        wait_for(lambda: step(directory) > begun)  # noqa: B023  an attempt may end before it trains
        with frozen(directory) as pid:
            wait_for(lambda: announced(pid, signal.SIGUSR2))
        wait_for(lambda: states(directory).count("preempted") > ends)  # noqa: B023
    wait_for(lambda: len(resumed()) >= 2 or states(directory)[-1] == "failed")
    first, second, *_ = resumed()
    assert 0 < first < second
    records = [record["step"] for record in metrics_log.read(directory / CELL / "metrics.jsonl")]
    assert records == sorted(set(records))
    cluster.run("scancel", job(directory), EventLog(directory).comparison().job)  # type: ignore[union-attr]
