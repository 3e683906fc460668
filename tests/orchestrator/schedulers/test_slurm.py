"""Slurm's answers become states of jobs."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.schedulers import Local, Slurm
from orchestrator.schedulers.scheduler import ThisJob, outside_environment
from orchestrator.schedulers.slurm import commands
from orchestrator.schedulers.slurm import scheduler as slurm
from orchestrator.schedulers.slurm.scheduler import job_state as job
from tests.naming import naming
from tests.orchestrator.schedulers.scripted import Scripted


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{scripted.bin}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "REQUEUE_PAUSES", (0.0,))
    return scripted


def test_a_job_of_another_script_is_not_ours(cluster: Scripted, tmp_path: Path) -> None:
    """Ids begin anew with a new Slurm, and are counted by each cluster for itself."""
    ours = "/elsewhere/mounted/it's | x/jobs/.submission_file_1.sh"
    lines = [f"1|RUNNING|None|{ours}", "2|RUNNING|None|/home/me/x/jobs/a.sh", "3_0|PENDING|None|(null)", "4|PENDING"]
    cluster.says("jobs", "\n".join(lines) + "\n")
    cluster.says("sacct", "2|CANCELLED by 0\n")
    found = Slurm(tmp_path / "it's | x").states(["1", "2", "3_0", "4", "5"])
    assert found == {"1": job("RUNNING"), "3_0": job("PENDING"), "4": job("PENDING")}


def test_what_squeue_does_not_list_does_not_run(cluster: Scripted, tmp_path: Path) -> None:
    cluster.says("sacct", "1|RUNNING\n2|OUT_OF_MEMORY\n3|PENDING\n4|CANCELLED by 0\n5|SUSPENDED\n6|\n")
    found = Slurm(tmp_path).states(list("1234567"))
    assert found == {"2": job("OUT_OF_MEMORY"), "4": job("CANCELLED")}
    assert f"-u {os.getuid()}" in cluster.asked("sacct")[0], "another user's may have had that id"


def test_the_habits_of_a_user_filter_no_answer(
    cluster: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    habits = {f"{command}_PARTITION" for command in ("SQUEUE", "SACCT", "SCONTROL", "SCANCEL", "SINFO")}
    for name in (*habits, "SQUEUE_FORMAT", "SLURM_CONF", "SBATCH_PARTITION"):
        monkeypatch.setenv(name, "gpu")
    Slurm(tmp_path).states(["1"])
    Slurm(tmp_path).cancel(["1"])
    Slurm(tmp_path).requeue("1")
    assert commands.refusal(tmp_path / "job.sh") is None
    for command in ("squeue", "sacct", "scancel", "scontrol", "sbatch"):
        seen = cluster.environment(command)
        assert not seen & {*habits, "SQUEUE_FORMAT"}, command
        assert {"SLURM_CONF", "SBATCH_PARTITION"} <= seen, "these choose, for submissions, too"


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("N/A", True),  # it waits for a place alone
        ("", True),
        ("in ten seconds", True),
        (200, False),  # seconds from now
        (-200, True),
    ],
)
def test_a_pause_is_kept_wherever_slurm_itself_waits_no_longer(
    cluster: Scripted, start: str | int, expected: bool
) -> None:
    if isinstance(start, int):
        start = (datetime.now() + timedelta(seconds=start)).isoformat(timespec="seconds")
    cluster.says("start", start + "\n")
    assert Slurm(cluster.root).requeue("7", 60)
    update = ["update JobId=7 StartTime=now+60"] if expected else []
    assert cluster.asked("scontrol") == ["requeue 7", *update]


def test_where_nobody_says_how_long_slurm_waits_it_is_not_hurried(cluster: Scripted) -> None:
    (cluster.bin / "squeue").unlink()
    (cluster.bin / "squeue").symlink_to("/bin/false")
    assert Slurm(cluster.root).requeue("7", 60)
    assert cluster.asked("scontrol") == ["requeue 7"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True),
        ("it has not answered for 30 s", True),
        ("invalid partition specified: nowhere", False),
        ("Requested time limit is invalid (missing or exceeds some limit)", False),
        ("Job violates accounting/QOS policy", False),
    ],
)
def test_no_answer_is_told_from_a_refusal(said: str, expected: bool) -> None:
    assert commands.is_no_answer(said) == expected


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("nodes", 0, ["launcher.slurm.nodes=0"]),
        ("nodes", 2, ["launcher.ranks=1", "launcher.slurm.nodes=2"]),
        ("memory_gb", float("nan"), ["launcher.slurm.memory_gb=nan"]),
        ("warning_seconds", 0, ["launcher.slurm.warning_seconds=0"]),
        ("gpus", -1, ["launcher.slurm.gpus=-1"]),
        ("side_nice", -1, ["launcher.slurm.side_nice=-1"]),
        ("setup", ["module load x", "a\nb"], ["launcher.slurm.setup"]),
        ("partition", "gpu\n#SBATCH --uid=0", ["launcher.slurm.partition"]),
        ("options", {"mail type": "END"}, ["launcher.slurm.options.mail type"]),
    ],
)
def test_its_settings_are_checked_where_it_is_chosen(tmp_path: Path, key: str, value: Any, named: list[str]) -> None:
    config = Config()
    Slurm(tmp_path).check(config)
    setattr(config.launcher.slurm, key, value)
    with pytest.raises(UserError, match=naming(*named)):
        Slurm(tmp_path).check(config)
    Local(tmp_path).check(config)


def test_the_environment_of_a_job_is_hidden_from_others_but_not_where_slurm_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "SLURM_CPUS_ON_NODE", "SUBMITIT_EXECUTOR", "RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert Slurm.allocation() is None
    assert "RANK" in outside_environment(), "left in the environment of a shell: no job"
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert Slurm.allocation() == ThisJob("7_2", 3)
    assert Slurm(tmp_path).this_job() is None, "somebody else submitted it"
    left = outside_environment()
    assert "SLURM_CONF" in left
    assert not {"SLURM_JOB_ID", "SLURM_CPUS_ON_NODE", "SUBMITIT_EXECUTOR", "RANK"} & left.keys()
