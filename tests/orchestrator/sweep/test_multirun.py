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
from omegaconf import OmegaConf
from rich.console import Console

from orchestrator.common.terminal import Voice, one_piece
from orchestrator.config import schema
from orchestrator.storage import checkpoint, metrics_log
from orchestrator.sweep.announcement import Announcement
from orchestrator.sweep.multirun import PLACES, Multirun
from orchestrator.sweep.outcome import Outcome, told
from tests.waiting import PATIENCE, wait_for

APART = ("joblib", "submitit_local")
INNER = {"joblib": "local", "submitit_local": "debug"}  # one of each: cells as processes below, and inside the job


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "-m", "name=sweep", *arguments]


@pytest.mark.parametrize("launcher", APART)
def test_one_failed_job_leaves_the_others_their_results_and_says_why(
    small_cell: tuple[str, ...], tmp_path: Path, launcher: str
) -> None:
    ask = command(
        *small_cell, "train.steps=2", "forensics.every=2", "optim.weight_decay=0", "optim.lr=0.001,1e36", "root=out",
        f"hydra/launcher={launcher}", f"launcher={INNER[launcher]}", "hydra.job.chdir=true",
    )  # fmt: skip
    ended = subprocess.run(ask, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("optim.lr=1e+36: main/seed=0 failed: The validation loss on ")
    assert len(ended.stderr.splitlines()) == 1, "one sentence, said once, without a traceback"
    assert (tmp_path / "out/sweep__optim.lr=0.001/comparison/verdict.json").is_file()
    *lines, kept, lost, beside = ended.stdout.splitlines()
    assert kept.startswith("out/sweep__optim.lr=0.001  1 done")
    assert lost.startswith("out/sweep__optim.lr=1e+36  1 failed")
    assert beside == (
        "Side by side: python -m orchestrator.compare out/sweep__optim.lr=0.001 out/sweep__optim.lr=1e+36"
    )
    if launcher == "joblib":
        assert not any("log:" in line for line in (kept, lost))
        heading = lines.index("── sweep__optim.lr=0.001 ──")
        progress = [line for line in lines if "main/seed=0 " in line and " step " in line]
        assert {line.partition(": ")[0] for line in progress} == {"optim.lr=0.001", "optim.lr=1e+36"}
        report = lines[heading : next(i for i, line in enumerate(lines) if "report.html" in line) + 1]
        assert not any(line.startswith("optim.lr=") for line in report), "one piece, without anybody's prefix"
    else:
        announced = Path(lines[0].partition("whose logs are ")[2].split(" and ")[0])
        assert sorted(map(str, announced.parent.glob(announced.name))) == sorted(
            str(tmp_path / line.split("log: ")[1]) for line in (kept, lost)
        )
        assert "── sweep__optim.lr=0.001 ──" in Path(tmp_path / kept.split("log: ")[1]).read_text()
        assert not [path for path in (tmp_path / "out").rglob("*") if "%" in path.name]
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        ".data", ".multirun", "sweep__optim.lr=0.001", "sweep__optim.lr=1e+36"
    }  # fmt: skip


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
    assert "Stopped: the same command resumes" in said
    for path in running:
        newest, _ = checkpoint.newest(path.parent / "checkpoints")
        assert newest is not None
        assert checkpoint.step_of(newest) > 10


def _at(tmp_path: Path, jobs: int) -> Multirun:
    of = Multirun()
    of.record, of.jobs, of.place = tmp_path / "record.jsonl", jobs, PLACES["JoblibLauncher"]
    return of


@pytest.mark.parametrize(
    ("jobs", "asked", "expected"), [(2, None, [2, 2]), (3, None, [2, 1, 1]), (9, None, [1] * 4), (9, 2, [2, 2])]
)
def test_jobs_on_one_machine_share_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, asked: int | None, expected: list[int]
) -> None:
    """The only faked part is the machine: four cores. Whoever finds none free waits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    multirun, configs = _at(tmp_path, jobs), [schema.Config() for _ in expected]
    with ExitStack() as stack:
        for config in configs:
            config.train.device, config.launcher.parallel = schema.Device.cpu, asked
            stack.enter_context(multirun.share(config))
        assert [config.launcher.parallel for config in configs] == expected
        with ExitStack() as another:
            assert multirun._take(len(expected), another) is None
    with ExitStack() as another:
        assert multirun._take(len(expected), another) == 0


def test_a_slurm_job_uses_the_cores_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.common.environment import usable_cores

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)})
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert usable_cores() == 8, "left in the environment of a shell: no job"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert usable_cores() == 3


def test_what_varies_is_known_where_the_command_line_is_not(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {
            "hydra": {
                "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
                "sweeper": {"params": {"seed": "1,2"}},
                "overrides": {"task": ["optim.lr=choice(0.1,0.2,0.3)", "name=x", "tracker.tags=[a,b]"], "hydra": []},
                "sweep": {"dir": str(tmp_path)},
            }
        }
    )
    multirun = Multirun()
    multirun.on_multirun_start(config)
    elsewhere = pickle.loads(pickle.dumps(multirun))  # as Hydra hands it to a job
    assert elsewhere.jobs == 6
    assert elsewhere.swept(["optim.lr=0.1", "name=x", "seed=1"]) == ["optim.lr=0.1", "seed=1"]
    elsewhere.note(Outcome(3, 2, ["why"]))
    assert multirun.outcomes() == [Outcome(3, 2, ["why"])]


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
    with pytest.raises(SystemExit, match="2"):
        orchestrate("-m", "seed=1,2", "dry_run=true", "hydra/launcher=submitit_slurm", bad)
    assert "cannot be printed" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_report_is_printed_in_one_piece_whoever_else_speaks(tmp_path: Path) -> None:
    terminal, consoles = io.StringIO(), []
    for prefix in ("lr=1: ", "lr=2: "):
        consoles.append(Console(file=Voice(terminal, prefix, _at(tmp_path, 2).turn), width=80))  # type: ignore[arg-type]
    one, two = consoles
    with one_piece(one):
        one.print("its first")
        with one_piece(two):
            two.print("the other's first")
            two.print("the other's last")
        two.print("two\nlines")
        one.print("its last")
    one.print("after")
    assert terminal.getvalue() == (
        "\n── lr=2 ──\nthe other's first\nthe other's last\nlr=2: two\nlr=2: lines\n"
        "\n── lr=1 ──\nits first\nits last\nlr=1: after\n"
    )


def test_who_has_the_turn_to_speak_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.sweep.multirun.TURN_SECONDS", 60)
    terminal, told = io.StringIO(), threading.Event()
    voice = Voice(terminal, "b: ", _at(tmp_path, 2).turn)

    def speak() -> None:
        told.set()
        voice.write("b\n")

    other = threading.Thread(target=speak)
    with _at(tmp_path, 2).turn():
        other.start()
        told.wait()
        other.join(0.1)
        assert terminal.getvalue() == ""
    other.join()
    assert terminal.getvalue() == "b: b\n"


def test_what_became_of_jobs_that_left_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of = _at(tmp_path, 3)
    of.note(Outcome(1, None, [], "lr=2"))
    of.note(Outcome(0, None, [], "lr=1", log=f"{tmp_path}/logs/7_0_log.out"))
    of.note(Outcome(2, None, [], "lr=3"))
    of.note(Outcome(0, None, [], directory="out/x__lr=1"))
    of.note(Outcome(2, 2, ["lr=3: why"]))
    of.note(Outcome(0, 130, ["lr=1: stopped"]))
    assert [ended.job for ended in of.outcomes()] == [0, 2], "one has only begun"
    assert told(of.known()) == [
        "out/x__lr=1  stopped before it began  log: logs/7_0_log.out",
        "lr=2         has not ended",
        "lr=3         refused",
    ]


def test_many_experiments_are_named_by_what_their_names_begin_with(tmp_path: Path) -> None:
    outcomes = []
    for job in range(30):
        directory = tmp_path / f"a b__lr={job}"
        directory.mkdir()
        (directory / "experiment.yaml").touch()
        outcomes.append(Outcome(job, 2, [], directory=str(directory)))
    assert told(outcomes)[-1] == f"Side by side: python -m orchestrator.compare '{tmp_path}/a b'__*"
    assert told(outcomes[:2])[-1].endswith(f"'{tmp_path}/a b__lr=0' '{tmp_path}/a b__lr=1'")


def test_jobs_are_announced_when_they_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/1_submitted.pkl").touch()  # of an earlier multirun
    refused = Announcement(tmp_path / "logs", "2 jobs")
    (tmp_path / "logs/aa55.pkl").touch()  # what sbatch would be given
    assert not refused.close()
    assert capsys.readouterr().out == ""
    for folder in ("logs", "logs/%j"):
        taken = Announcement(tmp_path / folder, "2 jobs")
        job = tmp_path / folder.replace("%j", "3") / "3_submitted.pkl"
        job.parent.mkdir(exist_ok=True)
        job.touch()
        assert taken.close()
        assert capsys.readouterr().out == "2 jobs\n"
        job.unlink()


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
    assert "repeat the command instead" in capsys.readouterr().err
    assert not (tmp_path / "trap").exists()


def training(directory: Path) -> list[Path]:
    """The metrics logs of the cells that have passed step 10."""
    logs = directory.glob("out/*/main/seed=0/metrics.jsonl")
    return [log for log in logs if (metrics_log.newest(log) or {"step": 0})["step"] > 10]
