"""Hydra's launchers, for real: every job of a multirun is one whole experiment in a process of its own."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from orchestrator.common.errors import STOPPED
from orchestrator.config import schema
from orchestrator.config.compose import CONF
from orchestrator.storage import checkpoint, locks, metrics_log
from orchestrator.sweep.job import Job
from orchestrator.sweep.multirun import LAUNCHERS, Multirun
from orchestrator.sweep.prefixed_stream import LONG, PrefixedStream
from orchestrator.sweep.records import JobRecord, read_records, summary
from tests.naming import names
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.slow

SIDE_BY_SIDE = ("joblib", "submitit_local")
INNER = {"joblib": "local", "submitit_local": "debug"}  # one of each: cells as processes below, and inside the job


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "-m", "name=sweep", *arguments]


@pytest.mark.parametrize("launcher", SIDE_BY_SIDE)
def test_one_failed_job_leaves_the_others_their_results_and_says_why(
    small_cell: tuple[str, ...], tmp_path: Path, launcher: str
) -> None:
    ask = command(
        *small_cell, "train.steps=2", "forensics.every=2", "optim.weight_decay=0", "optim.lr=0.001,1e36", "root=out",
        f"hydra/launcher={launcher}", f"launcher={INNER[launcher]}", "hydra.job.chdir=true",
    )  # fmt: skip
    ended = subprocess.run(ask, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("optim.lr=1e+36: main/seed=0 failed: ")
    assert len(ended.stderr.splitlines()) == 1, "one sentence, said once, without a traceback"
    assert (tmp_path / "out/sweep__optim.lr=0.001/comparison/verdict.json").is_file()
    *lines, kept, lost, beside = ended.stdout.splitlines()
    assert kept.startswith("out/sweep__optim.lr=0.001  1 done")
    assert lost.startswith("out/sweep__optim.lr=1e+36  1 failed")
    assert beside.endswith("python -m orchestrator.compare out/sweep__optim.lr=0.001 out/sweep__optim.lr=1e+36")
    if launcher == "joblib":
        assert not any("log:" in line for line in (kept, lost))
        heading = lines.index("── optim.lr=0.001 ──")
        progress = [line for line in lines if "main/seed=0 " in line and " step " in line]
        assert {line.partition(": ")[0] for line in progress} == {"optim.lr=0.001", "optim.lr=1e+36"}
        report = lines[heading : next(i for i, line in enumerate(lines) if "report.html" in line) + 1]
        assert not any(line.startswith("optim.lr=") for line in report), "one piece, without anybody's prefix"
    else:
        logs = Path(lines[0].partition(" 2 jobs: ")[2].split(" and ")[0])
        assert sorted(map(str, logs.parent.glob(logs.name))) == sorted(
            str(tmp_path / line.split("log: ")[1]) for line in (kept, lost)
        )
        assert "── optim.lr=0.001 ──" in Path(tmp_path / kept.split("log: ")[1]).read_text()
        assert not [path for path in (tmp_path / "out").rglob("*") if "%" in path.name]
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
    left = {".multirun", "sweep__optim.lr=0.001", "sweep__optim.lr=1e+36"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == left


@pytest.mark.parametrize(("launcher", "how"), [("joblib", "Ctrl-C"), ("submitit_local", "kill")])
def test_a_stopped_multirun_saves_what_runs_and_starts_nothing_more(
    small_cell: tuple[str, ...], tmp_path: Path, launcher: str, how: str
) -> None:
    ask = command(
        *small_cell, "train.steps=100000", "train.checkpoint_every=90000", "forensics.every=90000", "launcher=debug",
        "optim.lr=0.001,0.002", f"root={tmp_path}/out", f"hydra/launcher={launcher}",
    )  # fmt: skip
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(ask, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(lambda: training(tmp_path), process=process, log=log)
        running = training(tmp_path)
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # reaches the whole group, as from a terminal
        else:
            process.terminate()
        assert process.wait(PATIENCE) == 130, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    said = log.read_text()
    assert "Traceback" not in said
    assert STOPPED in said
    for path in running:
        newest, _ = checkpoint.newest(path.parent / "checkpoints")
        assert newest is not None
        assert checkpoint.step_of(newest) > 10


def _side_by_side(tmp_path: Path, jobs: int) -> Multirun:
    multirun = Multirun()
    multirun.directory, multirun.jobs, multirun.launcher = tmp_path, jobs, LAUNCHERS["JoblibLauncher"]
    return multirun


@pytest.mark.parametrize(
    ("jobs", "asked", "expected"), [(2, None, [2, 2]), (3, None, [2, 1, 1]), (9, None, [1] * 4), (9, 2, [2, 2])]
)
def test_jobs_on_one_machine_share_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, asked: int | None, expected: list[int]
) -> None:
    """The only faked part is the machine: four cores. A job that finds no share free waits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    multirun = _side_by_side(tmp_path, jobs)
    configs = [schema.Config() for _ in range(len(expected) + 1)]
    for config in configs:
        config.train.device, config.launcher.parallel = schema.Device.cpu, asked
    began = threading.Event()

    def begin_one_more() -> None:
        with Job(multirun, len(expected), []).share_of_machine(configs[-1]):
            began.set()

    waiting = threading.Thread(target=begin_one_more)
    with ExitStack() as stack:
        for number, config in enumerate(configs[:-1]):
            stack.enter_context(Job(multirun, number, []).share_of_machine(config))
        assert [config.launcher.parallel for config in configs[:-1]] == expected
        assert all(locks.is_held(tmp_path / f"share-{share}.lock") for share in range(len(expected)))
        waiting.start()
        assert not began.wait(0.5)
    waiting.join()
    assert began.is_set()
    assert configs[-1].launcher.parallel == expected[0]


def test_a_slurm_job_uses_the_cores_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.schedulers.scheduler import usable_cores

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)})
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert usable_cores() == 8, "left in the environment of a shell: no job"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert usable_cores() == 3


def test_a_job_knows_which_of_its_overrides_vary(tmp_path: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.create(
            {
                "hydra": {
                    "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
                    "sweeper": {"params": {"seed": "1,2"}},
                    "overrides": {
                        "task": ["optim.lr=choice(0.1,0.2,0.3)", "width=glob(ra*)", "name=x", "tracker.tags=[a,b]"],
                        "hydra": [],
                    },
                    "sweep": {"dir": str(tmp_path)},
                }
            }
        )
        multirun = Multirun()
        multirun.on_multirun_start(config)
    elsewhere = pickle.loads(pickle.dumps(multirun))  # as Hydra hands it to a job
    assert elsewhere.jobs == 6
    job = Job(elsewhere, 3, ["optim.lr=0.1", "width=ramp", "name=x", "seed=1"])
    assert job.swept == ["optim.lr=0.1", "width=ramp", "seed=1"]
    job.run(lambda: 2)
    label = "optim.lr=0.1 width=ramp seed=1"
    assert read_records(multirun.directory) == [JobRecord(3, label, exit_code=2)]


@pytest.mark.parametrize(
    "bad",
    [
        "root='a\nb'",
        "root=50%",
        "hydra.launcher.comment='a\n touch b'",
        "+hydra.launcher.additional_parameters.x='a\n touch b'",
    ],
)
def test_what_would_break_a_job_script_is_refused_before_one_is_written(
    orchestrate: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, bad: str
) -> None:
    assert orchestrate("-m", "seed=1,2", "dry_run=true", "hydra/launcher=submitit_slurm", bad) == 2
    assert capsys.readouterr().err.startswith("hydra.launcher.")
    assert not [*tmp_path.iterdir()]


def test_a_report_is_printed_in_one_piece_whatever_the_other_jobs_print(tmp_path: Path) -> None:
    terminal, report = io.StringIO(), [f"line {number}\n" for number in range(LONG + 1)]
    streams = [PrefixedStream(terminal, label, tmp_path / "lock") for label in ("lr=1", "lr=2")]
    one, two = (Console(file=stream, width=80) for stream in streams)  # type: ignore[arg-type]
    with one:
        one.print("a short text")
        two.print("two\nlines")
        with two:
            one.print("that belongs together")
            for line in report:
                two.print(line, end="")
    one.print("after")
    assert terminal.getvalue() == (
        "lr=2: two\nlr=2: lines\n\n── lr=2 ──\n"
        + "".join(report)
        + "lr=1: a short text\nlr=1: that belongs together\nlr=1: after\n"
    )


def test_a_job_waits_while_another_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sweep.prefixed_stream.WAIT_SECONDS", 60)
    terminal, started = io.StringIO(), threading.Event()
    stream = PrefixedStream(terminal, "b", tmp_path / "lock")

    def write() -> None:
        started.set()
        stream.write("b\n")

    other = threading.Thread(target=write)
    with locks.hold(tmp_path / "lock"):
        other.start()
        started.wait()
        other.join(0.1)
        assert terminal.getvalue() == ""
    other.join()
    assert terminal.getvalue() == "b: b\n"


def test_what_became_of_jobs_that_left_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = [
        JobRecord(1, "lr=2"),
        JobRecord(2, "lr=3", exit_code=2, messages=["why"]),
        JobRecord(0, "lr=1", f"{tmp_path}/logs/7_0_log.out", "out/x__lr=1", 130, ["stopped"]),
        JobRecord(3, "lr=4", directory="out/x__lr=4", exit_code=0),
    ]
    for record in records:
        JobRecord(record.job, record.label).write(tmp_path)
        record.write(tmp_path)
    assert [record.job for record in read_records(tmp_path)] == [0, 1, 2, 3]
    told = ("stopped", "not ended", "refused", "planned")
    lines = summary(read_records(tmp_path))
    for line, label, word in zip(lines, ("out/x__lr=1", "lr=2", "lr=3", "out/x__lr=4"), told, strict=True):
        assert line.startswith(label)
        assert names(line, word)
    assert lines[0].endswith("log: logs/7_0_log.out")


def test_many_experiments_are_named_by_what_their_names_begin_with(tmp_path: Path) -> None:
    records = []
    for job in range(30):
        directory = tmp_path / f"a b__lr={job}"
        directory.mkdir()
        (directory / "experiment.yaml").touch()
        records.append(JobRecord(job, f"lr={job}", directory=str(directory), exit_code=2))
    assert summary(records)[-1].endswith(f"python -m orchestrator.compare '{tmp_path}/a b'__*")
    assert summary(records[:2])[-1].endswith(f"'{tmp_path}/a b__lr=0' '{tmp_path}/a b__lr=1'")


class Payload:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.trap),)


def test_hydras_rerun_which_unpickles_a_file_is_refused(
    orchestrate: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(Payload(tmp_path / "trap")))
    for option in ("--experimental-rerun", "--exp"):
        assert orchestrate(option, f"{tmp_path}/job.pickle") == 2
        assert orchestrate(f"{option}={tmp_path}/job.pickle") == 2
    assert names(capsys.readouterr().err, "--experimental-rerun")
    assert not (tmp_path / "trap").exists()


def training(directory: Path) -> list[Path]:
    """The metrics logs of the cells that have passed step 10."""
    logs = directory.glob("out/*/main/seed=0/metrics.jsonl")
    return [log for log in logs if (metrics_log.newest(log) or {"step": 0})["step"] > 10]
