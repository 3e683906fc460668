"""Random sequences of faults over a real cell of a few steps, each attempt a process of its own.

Whatever happened, the cell must end with the bytes of one to which nothing did.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orchestrator.config.compose import CONF, compose
from orchestrator.experiments.experiment import experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.jobs import worker
from orchestrator.schedulers.scheduler import STARTED_BY
from orchestrator.schedulers.slurm import scheduler
from orchestrator.storage import locks, metrics_log
from orchestrator.storage.event_log import EventLog
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "shutil.rmtree"}
TOUCHED = 400  # more of these than an attempt makes: a fault that is due later does not happen


@dataclass(frozen=True)
class Fault:
    """A fault that meets an attempt as it touches the disk for the nth time, or the disk after the attempt."""

    kind: str
    touch: int = 0
    seed: int = 0
    of: str = ""  # only touches of paths that hold this are counted


INSIDE = ("kill", "stop", "full", "freeze")
AFTER = ("cut metrics log", "half a checkpoint", "no seal", "flipped bit", "left over", "cut event log", "clock")


@dataclass
class Lab:
    """A prepared cell, and one to which nothing happened."""

    prepared: Path
    whole: dict[str, Any]
    copies: int = 0
    frozen: list[int] = field(default_factory=list)


def result_of(cell: Path) -> dict[str, Any]:
    """All that must not depend on what happened."""
    last, told = sorted((cell / "checkpoints").glob("step_????????")), EventLog(cell.parents[1]).last()
    return {
        "checkpoints": [path.name for path in last],
        "weights": [hashlib.sha256(path.read_bytes()).hexdigest() for path in last[-1].glob("*.safetensors")],
        "records": [
            (r["step"], r["loss"], r["digest"], r.get("heldout")) for r in metrics_log.read(cell / "metrics.jsonl")
        ],
        "readings": [path.name for path in sorted((cell / "forensics").glob("step_*.json"))],
        "state": told["main/seed=0"].state if told else "",
    }


@pytest.fixture(scope="module")
def lab(small_cell: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("lab")
    GlobalHydra.instance().clear()
    # every attempt may be a death: that a cell which dies thrice at one place is given up is tried elsewhere
    overrides = [*small_cell, "launcher.retries=100", "name=x", f"root={root}", f"data.cache_dir={root}/data"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = experiment_of(overrides, compose)
    open_directory(experiment)
    prepared = experiment.cells[0].directory
    found = Lab(prepared, {})
    cell = copied(found, root)
    assert ended(attempt(cell)) == 0
    found.whole = result_of(cell)
    assert found.whole["state"] == "done"
    return found


def copied(lab: Lab, root: Path) -> Path:
    lab.copies += 1
    cell = root / f"copy{lab.copies}/x/main/seed=0"
    cell.mkdir(parents=True)
    (cell / "config.yaml").write_text((lab.prepared / "config.yaml").read_text())
    return cell


def attempt(cell: Path, fault: Fault | None = None, restart: int = 0) -> int:
    """Start a process that runs the cell as a job of the cluster would; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(PATH="", SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(restart), **{STARTED_BY: "slurm"})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)
        scheduler.REQUEUE_PAUSES = (0.0,)  # no Slurm is there
        locks._try = noting_the_lock_it_waits_for(cell)
        sys.stderr = sys.stdout = (cell.parents[2] / "log").open("a")
        if fault is not None and fault.kind in INSIDE:
            sys.addaudithook(struck(cell, fault))
        if fault is not None and fault.kind == "clock":
            now, back = time.time, 86400.0 * (1 + fault.seed % 30)
            time.time = lambda: now() - back
        code = 0 if worker.run_job(cell) == "done" else 3
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def struck(cell: Path, fault: Fault) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: Python calls it before it touches a file, and gives up where it raises."""
    count, place = 0, str(cell.parents[1])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in TOUCHES or not str(arguments[0]).startswith(place) or fault.of not in str(arguments):
            return
        count += 1
        if count < fault.touch:
            return
        if fault.kind == "full":  # and stays so
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))
        if count == fault.touch:
            name = {"kill": signal.SIGKILL, "stop": signal.SIGTERM, "freeze": signal.SIGSTOP}[fault.kind]
            os.kill(os.getpid(), name)

    return hook


def ended(child: int) -> int | None:
    """Wait for the process; its exit code, negative for a signal, None where it is frozen."""
    _, status = os.waitpid(child, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return None
    return os.waitstatus_to_exitcode(status)


def ended_or_waits(child: int, frozen: list[int], cell: Path) -> int | None:
    """The same, where it may wait for a lock of one that froze while it wrote: all of those wake up then."""
    note, how = cell.parents[2] / f"waits.{child}", os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT
    wait_for(lambda: os.waitid(os.P_PID, child, how) is not None or waits_for_one_of(frozen, note))
    if os.waitid(os.P_PID, child, how) is None:
        for other in frozen:
            with suppress(ProcessLookupError):
                os.kill(other, signal.SIGCONT)
    return ended(child)


def noting_the_lock_it_waits_for(cell: Path) -> Callable[[int, int], bool | None]:
    """`locks._try`, which also writes the inode of a file that another process has locked."""
    real, note = locks._try, cell.parents[2] / f"waits.{os.getpid()}"

    def attempted(descriptor: int, kind: int) -> bool | None:
        if (got := real(descriptor, kind)) is False and kind == fcntl.LOCK_EX:
            note.write_text(str(os.fstat(descriptor).st_ino))
        return got

    return attempted


def waits_for_one_of(frozen: list[int], note: Path) -> bool:
    """True where one of the frozen processes holds the lock that the note names."""
    inode = note.read_text() if note.exists() else ""
    held = (line.split() for line in Path("/proc/locks").read_text().splitlines() if " FLOCK " in line)
    return bool(inode) and any(int(fields[4]) in frozen and fields[5].endswith(f":{inode}") for fields in held)


def spoil(cell: Path, fault: Fault) -> set[str]:
    """Corrupt files of a cell that nobody runs; return the checkpoints that are corrupt."""
    dice = random.Random(fault.seed)
    saved = sorted((cell / "checkpoints").glob("step_????????"))
    files = [cell / "metrics.jsonl"] if fault.kind == "cut metrics log" else [cell.parents[1] / "events.jsonl"]
    if fault.kind in ("cut metrics log", "cut event log") and files[0].exists():
        content = files[0].read_bytes()
        last = content.rstrip(b"\n").rfind(b"\n") + 1
        files[0].write_bytes(content[: dice.randint(last, len(content))])
    elif fault.kind == "left over":
        (cell / "checkpoints/.step_00000008.elsewhere.1.partial").mkdir(parents=True, exist_ok=True)
    elif saved and not (fault.kind == "flipped bit" and result_of(cell)["state"] == "done"):  # nobody looks again
        victim = dice.choice(sorted(path for path in dice.choice(saved).iterdir() if path.stat().st_size))
        if fault.kind == "half a checkpoint":
            victim.write_bytes(victim.read_bytes()[: dice.randint(0, victim.stat().st_size - 1)])
        elif fault.kind == "no seal":
            (victim.parent / "manifest.json").unlink(missing_ok=True)
        elif fault.kind == "flipped bit":
            content = bytearray(victim.read_bytes())
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            victim.write_bytes(content)
        return {victim.parent.name}
    return set()


inside = st.builds(Fault, st.sampled_from(INSIDE), st.integers(1, TOUCHED))
after = st.builds(Fault, st.sampled_from(AFTER), st.just(0), st.integers(0, 10**6))


@settings(
    max_examples=int(os.environ.get("FAULT_SEQUENCES", "12")),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],
)
@given(faults=st.lists(st.one_of(inside, after), min_size=1, max_size=5))
def test_no_sequence_of_faults_changes_what_a_cell_ends_as(lab: Lab, faults: list[Fault]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        cell, frozen, spoilt = copied(lab, Path(directory)), [], set[str]()
        dice = random.Random(len(faults))
        try:
            for restart, fault in enumerate(faults):
                child = attempt(cell, fault, restart)
                if ended_or_waits(child, frozen, cell) is None:
                    frozen.append(child)
                if fault.kind in AFTER:
                    spoilt |= spoil(cell, fault)
            last = attempt(cell, None, len(faults))
            for child in frozen:  # those that were thought dead wake up before it, while it runs, or after it
                time.sleep(dice.uniform(0, 0.6))
                os.kill(child, signal.SIGCONT)
            code = ended(last)
            log = (cell.parents[2] / "log").read_text()
            assert code == 0, log
            for child in frozen:
                ended(child)
            found, expected = result_of(cell), dict(lab.whole)
            for key in (
                "checkpoints",
                "readings",
            ):  # one that was corrupt before it was read is done without, and shown
                lacking = {name.removesuffix(".json") for name in {*expected.pop(key)} - {*found.pop(key)}}
                assert lacking <= spoilt, log
            assert found == expected, log
        finally:
            for child in frozen:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    ("of", "touch"),
    [
        ("/metrics.jsonl", 1),
        ("/metrics.jsonl", 3),
        ("/metrics.jsonl", 5),
        ("/metrics.replaced.jsonl", 1),
        ("/events.jsonl", 2),
        ("/.write.lock", 1),
        (".corrupt-", 1),
        (".json.replaced", 1),
        (".partial", 8),
    ],
)
def test_who_wakes_up_when_its_successor_has_ended_changes_nothing(
    lab: Lab, tmp_path: Path, of: str, touch: int
) -> None:
    cell = copied(lab, tmp_path)
    assert ended(attempt(cell, Fault("kill", 6, of="/metrics.jsonl"))) == -signal.SIGKILL
    newest = max((cell / "checkpoints").glob("step_????????"))
    (newest / "manifest.json").unlink()  # there is something to set aside
    (cell / "forensics" / f"{newest.name}.json").write_text("{}")
    frozen = attempt(cell, Fault("freeze", touch, of=of), restart=1)
    assert ended(frozen) is None, f"it does not touch {of} as often"
    last = attempt(cell, restart=2)
    try:
        assert ended_or_waits(last, [frozen], cell) == 0, (cell.parents[2] / "log").read_text()
        os.kill(frozen, signal.SIGCONT)
        ended(frozen)
        assert result_of(cell) == lab.whole, (cell.parents[2] / "log").read_text()
        steps = [json.loads(line)["step"] for line in (cell / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(set(steps)), "without a gap or a double, whoever reads it"
    finally:
        with suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGKILL)


def test_the_faults_strike(lab: Lab, tmp_path: Path) -> None:
    """Else the test above would try nothing: each kind does what it says, while an attempt touches the disk."""
    assert ended(attempt(copied(lab, tmp_path), Fault("kill", 60))) == -signal.SIGKILL
    assert ended(attempt(copied(lab, tmp_path), Fault("stop", 60))) == worker.REQUEUED
    assert ended(attempt(copied(lab, tmp_path), Fault("full", 60))) == 3
    child = attempt(copied(lab, tmp_path), Fault("freeze", 60))
    assert ended(child) is None
    os.kill(child, signal.SIGKILL)
    assert ended(attempt(copied(lab, tmp_path), Fault("kill", TOUCHED))) == 0
