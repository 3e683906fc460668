"""The recipe for a scheduler: one class of a few lines, one line in the table, and cells run through it."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pytest

from orchestrator import schedulers
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.schedulers.local import Local
from orchestrator.schedulers.scheduler import STARTED_BY, Job, JobState, Phase, Scheduler, usable_cores
from orchestrator.storage.event_log import EventLog


class Bash(Scheduler):
    """Jobs that `bash` runs on this machine; a job's id is its process."""

    name, title = "bash", "bash"

    def __init__(self, experiment_dir: Path) -> None:
        super().__init__(experiment_dir)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(
        self, config: Config, jobs: Sequence[Job], *, after: Collection[str] = (), delay: float = 0.0
    ) -> Iterator[str]:
        self.folder.mkdir(exist_ok=True)
        for job in jobs:
            line = f"exec {shlex.join(job.command)} 2> {shlex.quote(str(self.folder))}/$$_0_log.err"
            process = subprocess.Popen(["bash", "-c", line], env=self.environment(job), start_new_session=True)
            self.processes[str(process.pid)] = process
            yield str(process.pid)

    def states(self, ids: Collection[str]) -> dict[str, JobState]:
        ended = {id: self.processes[id].poll() is not None for id in ids}
        return {id: JobState(Phase.ended if ended[id] else Phase.running) for id in ids}

    def cancel(self, ids: Collection[str]) -> None:
        for id in ids:
            self.processes[id].terminate()


def test_a_scheduler_is_one_class_and_one_line(
    monkeypatch: pytest.MonkeyPatch, orchestrate: Callable[..., int], small: list[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(schedulers.SCHEDULERS, Bash.name, Bash)
    arms = ("++arms={a: ['width=uniform'], b: ['optim.lr=1e20']}", "declared=[width,optim.lr]", "seeds=[0]")
    more = ("optim.weight_decay=0", "optim.warmup_steps=0", "name=x", "launcher.kind=bash")
    assert orchestrate(*small, *arms, *more) == 2
    events = EventLog(tmp_path / "outputs/x")
    assert [r["state"] for r in events.of("a/seed=0")] == ["submitted", "running", "done"]
    assert [r["state"] for r in events.of("b/seed=0")] == ["submitted", "running", "failed"]
    assert {r["job"] for r in events.of("a/seed=0")} == {events.last()["a/seed=0"].job}, "the process is its id"
    assert (tmp_path / "outputs/x/comparison/verdict.json").is_file()


def test_what_a_scheduler_does_not_offer_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    orchestrate: Callable[..., int],
    small: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(schedulers.SCHEDULERS, Bash.name, Bash)
    assert orchestrate(*small, "launcher.kind=bash", "launcher.ranks=2") == 2
    assert "launcher.ranks=2" in capsys.readouterr().err
    assert orchestrate(*small, "launcher.kind=bosh") == 2
    assert "launcher.kind=bosh" in capsys.readouterr().err


def test_a_process_is_the_job_of_the_scheduler_that_started_it_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a cell that a launcher starts on this machine, inside a job of a cluster."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(STARTED_BY, "local")
    assert schedulers.Slurm(tmp_path).this_job() is None
    monkeypatch.setenv(STARTED_BY, "slurm")
    scheduler = schedulers.of_this_process(tmp_path)
    assert (here := scheduler.this_job()) is not None
    assert (scheduler.name, here.id) == ("slurm", "7")
    job = Job("module", (), "x", environment={"A": "1"})
    found = Bash(tmp_path).environment(job)
    assert "SLURM_JOB_ID" not in found
    assert (found["A"], found[STARTED_BY]) == ("1", "bash")


def test_an_event_of_an_unknown_scheduler_is_a_sentence(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    events.append("a/seed=0", "submitted", attempt=1, job="7", scheduler="pbs")
    with pytest.raises(UserError, match="'pbs'"):
        schedulers.job_states(events.open().values(), tmp_path)


def test_what_a_new_scheduler_tells_of_its_jobs_is_heeded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its variables are hidden from other jobs, its allotment bounds the cores, and its lines are none of a cell's."""
    monkeypatch.setattr(Bash, "job_variables", classmethod(lambda cls: ["BASH_JOB"]))
    monkeypatch.setattr(Bash, "allotted_cores", classmethod(lambda cls: 1))
    monkeypatch.setattr(Bash, "own_lines", re.compile("bash: "))
    monkeypatch.setitem(schedulers.SCHEDULERS, Bash.name, Bash)
    monkeypatch.setenv("BASH_JOB", "1")
    assert "BASH_JOB" not in Local(tmp_path).environment(Job("m", (), "x"))
    assert usable_cores() == 1
    assert len(Scheduler.slots(Config())) == 1
    assert schedulers.is_own_line("bash: fork: retry")
    assert schedulers.is_own_line("submitit WARNING (now) - bypassing signal")
    assert not schedulers.is_own_line("Out of memory.")
