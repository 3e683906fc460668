"""Launching on a cluster that refuses, forgets, or already has a part of the experiment."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.experiments.run_directory import record_launcher
from orchestrator.launch import finalize, queued, resume
from orchestrator.launch.jobs import cell_job, finalize_job
from orchestrator.launch.launcher import launch
from orchestrator.schedulers import Slurm
from orchestrator.schedulers.scheduler import Job, Resources
from orchestrator.schedulers.slurm import batch
from orchestrator.status import main as status_main
from orchestrator.storage import locks
from orchestrator.storage.event_log import EventLog
from tests.naming import names, naming
from tests.orchestrator.launch.cluster import FOUR, Made, console, jobs, printed, with_state
from tests.orchestrator.schedulers.scripted import Scripted

LEARNED = "['sidecar.mode=learn', 'sidecar.interval=2', 'sidecar.warmup=1']"
PLAYED = "['sidecar.mode=replay', 'sidecar.interval=2', 'sidecar.warmup=1', 'needs=learned']"
PLAYING = (f"++arms={{played: {PLAYED}, learned: {LEARNED}}}", "declared=[sidecar,needs]", "seeds=[0]")


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


def test_another_launcher_leaves_what_slurm_has_and_does_not_wait_for_it(made: Made, cluster: Scripted) -> None:
    launch(made("seeds=[0]"), console())
    experiment, told = made("seeds=[0]", "launcher=local"), console()
    assert launch(experiment, told) == []
    assert finalize.finalize(experiment, told, lambda sentence: pytest.fail(sentence), ran=False) == 0
    assert names(printed(told), "Slurm", "main/seed=0", "job 1")
    assert f"follow: python -m orchestrator.status {experiment.directory} --watch" in printed(told)


def test_a_process_id_is_not_taken_for_a_job_of_the_queue(made: Made, cluster: Scripted) -> None:
    """A cell that a launcher of this machine ran as process 2, beside Slurm's job 2."""
    experiment = made(*FOUR, "launcher.slurm.array=false")
    launch(experiment, console())
    with_state(experiment, ["a/seed=0"], "stopped")
    events = EventLog(experiment.directory)
    events.append("a/seed=0", "running", attempt=1, job="2")
    events.append("a/seed=0", "crashed", attempt=1, job="2")
    assert "a/seed=0" not in queued.still_queued(experiment, experiment.cells)
    launch(experiment, console())
    assert jobs(experiment)["a/seed=0"] == "6"


def test_a_stopped_cell_whose_job_still_ends_is_left_to_its_queue(made: Made, cluster: Scripted) -> None:
    experiment = made(*FOUR, "launcher.slurm.array=false", "seeds=[0]")
    launch(experiment, console())
    with_state(experiment, ["a/seed=0"], "stopped")
    cluster.become("1", "COMPLETING")
    told = console()
    launch(experiment, told)
    assert names(printed(told), "Slurm already has a/seed=0 (job 1)")


def test_a_cancelled_job_that_its_queue_has_forgotten_is_recorded_as_stopped(made: Made, cluster: Scripted) -> None:
    """Otherwise the deaths before it count against the next launch."""
    experiment = made(*FOUR, "launcher.slurm.array=false")
    launch(experiment, console())
    cluster.says("jobs", "")
    assert queued.cancel(experiment.directory) == []
    assert len(jobs(experiment, "stopped")) == 4


def test_the_comparison_is_kept_to_the_threads_of_a_cell(made: Made) -> None:
    """It makes the readings that are missing, and these are equal bit for bit at equal numbers of threads."""
    experiment = made("train.threads=2")
    cell = cell_job(experiment.cells[0], experiment).environment
    assert finalize_job(experiment).environment == cell
    assert cell["OMP_NUM_THREADS"] == "2"


def test_under_a_budget_cells_come_seed_after_seed_so_that_what_is_done_makes_pairs(
    made: Made, cluster: Scripted
) -> None:
    experiment = made(*FOUR, "launcher.slurm.array=false", "budget.core_hours=100")
    launch(experiment, console())
    assert jobs(experiment) == {"a/seed=0": "1", "b/seed=0": "2", "a/seed=1": "3", "b/seed=1": "4"}
