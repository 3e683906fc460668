"""Launching on a cluster that refuses, forgets, or already has a part of the experiment."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

from orchestrator import monitoring
from orchestrator.common.errors import UserError
from orchestrator.config.compose import CONF, compose
from orchestrator.config.schema import Config
from orchestrator.experiments.experiment import Experiment, experiment_of
from orchestrator.experiments.readings import Readings
from orchestrator.experiments.run_directory import open_directory, record_launcher
from orchestrator.jobs.readers import InQueue
from orchestrator.launch import checks, finalize, queued, resume
from orchestrator.launch.launcher import launch
from orchestrator.monitoring.cells import read_comparison
from orchestrator.plan.cost import cost_of
from orchestrator.plan.view import warnings
from orchestrator.schedulers import Slurm
from orchestrator.schedulers.scheduler import STARTED_BY, Job, Resources
from orchestrator.schedulers.slurm import batch
from orchestrator.schedulers.slurm import scheduler as slurm
from orchestrator.status import main as status_main
from orchestrator.storage import locks
from orchestrator.storage.event_log import COMPARISON, EventLog
from tests.naming import names, naming
from tests.orchestrator.schedulers.scripted import Scripted
from tests.waiting import PATIENCE, wait_for

FOUR = ("++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "seeds=[0,1]")
LEARNED = "['sidecar.mode=learn', 'sidecar.interval=2', 'sidecar.warmup=1']"
PLAYED = "['sidecar.mode=replay', 'sidecar.interval=2', 'sidecar.warmup=1', 'needs=learned']"
PLAYING = (f"++arms={{played: {PLAYED}, learned: {LEARNED}}}", "declared=[sidecar,needs]", "seeds=[0]")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{scripted.bin}:{os.environ['PATH']}")
    monkeypatch.setattr("orchestrator.monitoring.cells.PATIENCE", 1e-9)
    return scripted


Made = Callable[..., Experiment]


@pytest.fixture
def made(small: list[str], cluster: Scripted) -> Made:
    """The experiment of these overrides, in its directory, with nothing launched."""

    def make(*overrides: str) -> Experiment:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            experiment = experiment_of([*small, "name=x", "launcher=slurm", *overrides], compose)
            open_directory(experiment)
        return experiment

    return make


def console() -> Console:
    return Console(file=io.StringIO(), width=1000)


def printed(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def jobs(experiment: Experiment, state: str = "submitted") -> dict[str, str]:
    return {c: entry.job for c, entry in EventLog(experiment.directory).last().items() if entry.state == state}


def with_state(experiment: Experiment, cells: Sequence[str], state: str) -> None:
    for cell in cells:
        EventLog(experiment.directory).append(cell, "running", attempt=1, job="1", scheduler="slurm")
        EventLog(experiment.directory).append(cell, state, attempt=1, job="1", scheduler="slurm")


def test_what_slurm_took_before_it_refused_is_recorded_and_concluded(made: Made, cluster: Scripted) -> None:
    experiment = made(*FOUR, "launcher.slurm.array=false")
    cluster.says("limit", "2")
    with pytest.raises(UserError, match=naming("2 of 4 cells", "jobs 1, 2", "comparison", "Batch")):
        launch(experiment, console())
    assert jobs(experiment) == {"a/seed=0": "1", "a/seed=1": "2"}
    cluster.says("limit", "100")
    launch(experiment, console())
    assert jobs(experiment) == {"a/seed=0": "1", "a/seed=1": "2", "b/seed=0": "3", "b/seed=1": "4"}
    assert cluster.submitted()[4:] == ["5 x-comparison afterany:3:4:1:2"]


def test_a_refused_wave_leaves_the_one_before_it_a_conclusion(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, submit = made(*PLAYING), batch.executor

    def refused(config: Config, folder: Path, job: Job, after: Collection[str], delay: float) -> object:
        if after and job.resources == Resources.cell:
            raise UserError("Slurm refused the job (no): mend launcher.slurm.")
        return submit(config, folder, job, after, delay)

    monkeypatch.setattr(batch, "executor", refused)
    with pytest.raises(UserError, match=naming("1 of 2 cells", "job 1", "(no)")):
        launch(experiment, console())
    assert cluster.submitted() == ["1 x", "2 x-comparison afterany:1"]
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{cluster.bin}:{os.environ['PATH']}")
    launch(experiment, console())
    assert cluster.submitted()[2:] == ["3 x afterany:1"], "and the finalize that waits sees to it"


def test_an_interrupt_between_two_submissions_forgets_none(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, submit = made(*FOUR, "launcher.slurm.array=false"), batch.submit

    def interrupted(*words: object) -> object:
        if len(cluster.submitted()) == 3:
            raise KeyboardInterrupt
        return submit(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "submit", interrupted)
    told = console()
    with pytest.raises(KeyboardInterrupt):
        launch(experiment, told)
    assert list(jobs(experiment).values()) == ["1", "2", "3"]
    assert names(printed(told), "3 of 4 cells", "jobs 1, 2, 3")


def test_a_local_launcher_that_lives_is_left_alone(
    made: Made, cluster: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = made(*FOUR, "launcher=local")
    record_launcher(experiment)
    events = EventLog(experiment.directory)
    events.append("a/seed=0", "submitted", attempt=1, job="4711")
    cluster.says("jobs", f"4711|RUNNING|None|{experiment.directory}/jobs/a.sh\n")  # of the same number
    before = events.path.read_bytes()
    with locks.hold(locks.of_launcher(experiment.directory)):
        assert status_main([str(experiment.directory), "--resume", "all"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert names(said.err, experiment.directory, "another process")
    assert events.path.read_bytes() == before
    assert cluster.asked("scancel") == []
    resume.cancel(experiment.directory, console())
    assert cluster.asked("scancel") == []


def test_what_waits_is_cancelled_by_whoever_holds_the_experiment(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, cancel = made(*FOUR), Slurm.cancel
    launch(experiment, console())
    held: list[bool | None] = []

    def watched(scheduler: Slurm, ids: Sequence[str]) -> None:
        held.append(locks.is_held(locks.of_launcher(experiment.directory)))
        cancel(scheduler, ids)

    monkeypatch.setattr(Slurm, "cancel", watched)
    told = console()
    resume.resume(experiment.directory, "all", told)
    assert held == [True]
    assert names(printed(told), "Cancelled 1_0, 1_1, 1_2, 1_3")
    assert list(jobs(experiment).values()) == ["3_0", "3_1", "3_2", "3_3"]
    stopped = [r for r in EventLog(experiment.directory).of("a/seed=0") if r["state"] == "stopped"]
    assert [(r["job"], r["scheduler"]) for r in stopped] == [("1_0", "slurm")]
    assert [line.split()[1] for line in cluster.submitted()] == ["x", "x-comparison", "x"], "one finalize is enough"


def test_cells_that_play_back_what_slurm_already_has_wait_for_it(made: Made, cluster: Scripted) -> None:
    experiment = made(*PLAYING)
    launch(experiment, console())
    assert cluster.submitted() == ["1 x", "2 x afterany:1", "3 x-comparison afterany:1:2"]
    for job, state in (("1", "RUNNING"), ("2", "CANCELLED"), ("3", "CANCELLED")):
        cluster.become(job, state)
    resume.resume(experiment.directory, "unfinished", console())
    assert cluster.submitted()[3:] == ["4 x afterany:1", "5 x-comparison afterany:4:1"]
    assert jobs(experiment) == {"learned/seed=0": "1", "played/seed=0": "4"}


def test_two_conclusions_never_stand_side_by_side(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = made(*FOUR)
    events = EventLog(experiment.directory)
    assert queued.submit_finalize(experiment, ["7_0", "7_1"])
    assert cluster.submitted() == ["1 x-comparison afterany:7"]
    assert not queued.submit_finalize(experiment, ["8"])
    cluster.become("1", "RUNNING")
    assert not queued.submit_finalize(experiment, ["8"]), "it has still to look at the cells"
    events.append(COMPARISON, "running", attempt=1, job="1", scheduler="slurm")
    cluster.become("1", "PENDING")
    assert not queued.submit_finalize(experiment, ["8"]), "preempted, it will look again"
    cluster.become("1", "RUNNING")
    assert queued.submit_finalize(experiment, ["8"]), "it has looked"
    assert cluster.submitted()[1:] == ["2 x-comparison afterany:8:1"]
    cluster.become("2", "COMPLETING")
    assert queued.submit_finalize(experiment, ["8"]), "cancelled as it began"
    assert cluster.submitted()[2:] == ["3 x-comparison afterany:8:2"]
    for name, value in ((STARTED_BY, "slurm"), ("SLURM_JOB_ID", "3")):
        monkeypatch.setenv(name, value)
    assert queued.submit_finalize(experiment, ["9"]), "which it is itself"
    cluster.become("4", "FAILED")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert queued.submit_finalize(experiment)
    assert cluster.submitted()[4:] == ["5 x-comparison"]


@pytest.mark.parametrize("said", ["submitted", "running"])
def test_a_comparison_that_died_is_lost_and_resumed(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    experiment = made(*FOUR)
    record_launcher(experiment)
    events = EventLog(experiment.directory)
    with_state(experiment, [cell.id for cell in experiment.cells], "done")
    queued.submit_finalize(experiment)
    events.append(COMPARISON, said, attempt=1, job="1", scheduler="slurm")
    assert read_comparison(experiment.directory) == "queued (job 1)"
    assert resume.resume(experiment.directory, "unfinished", console()) is None
    assert len(cluster.submitted()) == 1, "it waits"
    cluster.become("1", "SUSPENDED")
    assert read_comparison(experiment.directory) == "suspended (job 1)"
    cluster.become("1", "NODE_FAIL")
    lost = read_comparison(experiment.directory)
    assert lost.startswith("lost: ")
    assert names(lost, "job 1", "NODE_FAIL", "jobs/1_0_log.err")
    cluster.says("jobs", "")
    unknown = read_comparison(experiment.directory)
    assert unknown.startswith("lost: ")
    assert names(unknown, "Slurm", "job 1")
    monkeypatch.setattr(slurm, "ask", lambda *_: None)
    word = {"submitted": "queued", "running": "running"}[said]
    unasked = read_comparison(experiment.directory)
    assert unasked.startswith(f"{word} (job 1)")
    assert names(unasked, "event log", "Slurm")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{cluster.bin}:{os.environ['PATH']}")
    told = console()
    assert resume.resume(experiment.directory, "unfinished", told) is None
    assert "submitted again" in printed(told)
    assert cluster.submitted()[1:] == ["2 x-comparison"]
    events.append(COMPARISON, "done", attempt=1, job="2", scheduler="slurm")
    cluster.says("jobs", "")
    assert resume.resume(experiment.directory, "all", console()) is None
    assert len(cluster.submitted()) == 2


def test_the_screen_is_shown_once_for_every_conclusion(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, shown, slept = made(*FOUR, "launcher.wait=true"), list[str](), list[float]()
    queued.submit_finalize(experiment)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:  # it tried a cell again, and left another finalize
            cluster.become("1", "COMPLETED")
            queued.submit_finalize(experiment)
        if len(slept) == 5:
            cluster.become("2", "COMPLETED")

    monkeypatch.setattr(queued, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(monitoring, "watch", lambda directory, to: shown.append(directory.name))
    assert queued.follow(experiment, console())
    assert shown == ["x", "x"]
    assert len(slept) == 5


def test_no_answer_is_no_reason_to_mend_the_configuration(made: Made, cluster: Scripted) -> None:
    experiment = made(*FOUR)
    cluster.says("says", "allocation failure: Unable to contact slurm controller (connect failure)\n")
    with pytest.raises(UserError, match="not answer") as caught:
        checks.check_jobs(experiment)
    assert "mend" not in str(caught.value)
    cluster.says("says", "allocation failure: Invalid qos specification\n")
    with pytest.raises(UserError, match=naming("Invalid qos specification", "launcher.slurm")):
        checks.check_jobs(experiment)


@pytest.mark.parametrize(("array", "expected"), [("true", ["#SBATCH --array=0-3%4"]), ("false", [])])
def test_slurm_is_asked_for_the_array_that_will_be_submitted(
    made: Made, cluster: Scripted, array: str, expected: list[str]
) -> None:
    cluster.says("says", "allocation failure: Invalid job array specification\n")
    with pytest.raises(UserError) as caught:
        checks.check_jobs(made(*FOUR, f"launcher.slurm.array={array}"))
    lines = (cluster.root / "tested").read_text().splitlines()
    assert [line for line in lines if "--array" in line] == expected
    assert "launcher.slurm.array=false" in str(caught.value)


def test_training_neither_waits_for_slurm_nor_loses_its_environment(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = made().cells
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_CONF", "RANK"):
        monkeypatch.setenv(name, "1")
    cluster.says("busy", "")  # until it is gone, sbatch does not return
    reader = InQueue(Readings(cell.directory, cell.config))
    for step in (0, 6, 12):
        reader.add(cell.directory / f"checkpoints/step_{step:08d}")
    wait_for(lambda: cluster.asked("sbatch"))
    assert reader.job is None
    assert {"SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "RANK"} <= os.environ.keys()
    reader.add(cell.directory)  # what the job that is being submitted may miss
    (cluster.root / "busy").unlink()
    wait_for(lambda: cluster.asked("squeue"))  # whether that one has begun: it has not
    wait_for(lambda: not reader.wanted.is_set())
    assert reader.job == "1"
    assert not cluster.environment("sbatch") & {"SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "RANK"}
    assert "SLURM_CONF" in cluster.environment("sbatch")
    assert cluster.submitted() == ["1 x-readings"]
    cluster.become("1", "RUNNING")
    reader.add(cell.directory)
    wait_for(lambda: len(cluster.submitted()) == 2)
    reader.close()
    assert "readings" not in {thread.name for thread in threading.enumerate()}


def test_a_cell_that_has_ended_waits_for_no_answer_of_slurm(
    made: Made, cluster: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = made().cells
    monkeypatch.setattr("orchestrator.jobs.readers.JOIN_SECONDS", 0.05)
    cluster.says("busy", "")
    reader = InQueue(Readings(cell.directory, cell.config))
    reader.add(cell.directory)
    wait_for(lambda: cluster.asked("sbatch"))
    reader.close()
    assert cluster.submitted() == []
    (cluster.root / "busy").unlink()
    reader.thread.join(PATIENCE)
    assert cluster.submitted() == ["1 x-readings"], "what was on its way arrives, as long as the process lives"


def test_a_checkpoint_that_cannot_be_read_leaves_the_others_to_be_compared(
    small: list[str], orchestrate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestrate(*small, "++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "seeds=[0]",
                       "launcher=debug", "name=x") == 0  # fmt: skip
    root = tmp_path / "outputs/x"
    for cell in ("a/seed=0", "b/seed=0"):
        (root / cell / "forensics/step_00000012.json").unlink()
    (root / "a/seed=0/.readings.lock").unlink()
    (root / "a/seed=0/.readings.lock").mkdir()
    experiment = resume.reopen(root)
    capsys.readouterr()
    assert finalize._compare_trained(experiment) == 2
    told = capsys.readouterr().out
    assert names(told, "a/seed=0", "readings", ".readings.lock")
    assert (root / "b/seed=0/forensics/step_00000012.json").exists()
    (root / "b/seed=0/forensics/step_00000012.json").unlink()
    (root / "b/seed=0/metrics.jsonl").write_text("")  # it did not get to its end
    assert finalize._compare_trained(experiment) == 1
    assert not (root / "b/seed=0/forensics/step_00000012.json").exists(), "nobody compares it"


def test_what_dies_before_it_begins_is_said_to_and_is_no_interruption(
    made: Made, cluster: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a line of `setup` fails: nobody pressed Ctrl-C."""
    experiment = made("seeds=[0]")
    launch(experiment, console())
    complaints: list[str] = []
    with_slurm = console()
    cluster.become("1", "FAILED")  # the cell; what follows it sees to it
    assert finalize.finalize(experiment, with_slurm, complaints.append) == 0
    assert names(printed(with_slurm), "1 cell with Slurm", "comparison")
    cluster.become("2", "FAILED")  # and that has the same setup
    (experiment.directory / "jobs/1_0_log.err").write_text("line 20: module: command not found\n")
    assert finalize.finalize(experiment, console(), complaints.append) == 2
    (complaint,) = complaints
    assert names(complaint, "main/seed=0", "lost", "FAILED", "launcher.slurm.setup", "jobs/1_0_log.err")
    assert complaint.endswith("\n  line 20: module: command not found")
    assert status_main([str(experiment.directory)]) == 0
    told = capsys.readouterr().out
    assert names(told, "launcher.slurm.setup")
    assert told.endswith(f"resume: python -m orchestrator.status {experiment.directory} --resume\n")


def test_another_launcher_leaves_what_slurm_has_and_does_not_wait_for_it(made: Made, cluster: Scripted) -> None:
    launch(made("seeds=[0]"), console())
    experiment, told = made("seeds=[0]", "launcher=local"), console()
    assert launch(experiment, told) == []
    assert finalize.finalize(experiment, told, lambda sentence: pytest.fail(sentence), ran=False) == 0
    assert names(printed(told), "Slurm", "main/seed=0", "job 1")
    assert f"follow: python -m orchestrator.status {experiment.directory} --watch" in printed(told)


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("allocation failure: Invalid generic resource (gres) specification", "launcher.slurm.gpus"),
        ("invalid partition specified: gpu", "launcher.slurm.partition"),
        ("allocation failure: Invalid node name specified", "launcher.slurm.options"),
        ("allocation failure: Invalid account or account/partition combination specified", "launcher.slurm"),
        ("something new", "launcher.timeout_hours"),
    ],
)
def test_a_refusal_names_the_key_that_helps_also_in_a_dry_run(
    made: Made, cluster: Scripted, said: str, cure: str
) -> None:
    experiment = made("seeds=[0]")
    cluster.says("says", f"sbatch: error: {said}\n")
    with pytest.raises(UserError, match=naming("Slurm", said.removeprefix("allocation failure: "), cure)):
        checks.check_jobs(experiment)
    assert names(next(warnings(cost_of(experiment))), cure)
