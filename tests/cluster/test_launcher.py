"""`launcher=slurm` as a user meets it: submitted, waited for, refused, followed by its comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.schedulers import Slurm
from orchestrator.schedulers.slurm.scheduler import job_state
from orchestrator.storage import metrics_log
from orchestrator.storage.event_log import EventLog
from tests.cluster.conftest import Run
from tests.cluster.slurm import Cluster
from tests.naming import names, naming
from tests.waiting import wait_for

pytestmark = pytest.mark.cluster

ARMS = ("++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "seeds=[0,1]")


def test_an_experiment_is_an_array_and_a_comparison_that_follows_it(
    cluster: Cluster, run: Run, small_cell: Sequence[str], tmp_path: Path
) -> None:
    options = [*small_cell, *ARMS, "name=x", f"root={tmp_path}", "launcher=slurm", "launcher.parallel=3"]
    done = run("orchestrator", *options, "launcher.wait=true")
    assert done.returncode == 0, done.stderr
    assert "b − a" in done.stdout, "the comparison is printed by who waited"
    directory = tmp_path / "x"
    events = EventLog(directory)
    jobs = {cell: entry.job for cell, entry in events.last().items()}
    array = jobs["a/seed=0"].partition("_")[0]
    assert jobs == {cell: f"{array}_{task}" for task, cell in enumerate(jobs)}
    assert {entry.state for entry in events.last().values()} == {"done"}
    assert events.comparison()
    assert events.comparison().state == "done"  # type: ignore[union-attr]
    assert json.loads((directory / "comparison/verdict.json").read_text())["name"] == "x"
    told = run("orchestrator.status", str(directory)).stdout
    assert "4 done" in told
    assert "comparison done" in told
    again = run("orchestrator", *options)
    assert again.returncode == 0, again.stderr
    assert names(again.stdout, "Nothing is left")
    assert events.last()["a/seed=0"].job == jobs["a/seed=0"]


def test_cells_that_play_others_back_come_after_them(run: Run, small_cell: Sequence[str], tmp_path: Path) -> None:
    learned = "['sidecar.mode=learn', 'sidecar.interval=2', 'sidecar.warmup=1']"
    played = "['sidecar.mode=replay', 'sidecar.interval=2', 'sidecar.warmup=1', 'needs=learned']"
    arms = (f"++arms={{played: {played}, learned: {learned}}}", "declared=[sidecar,needs]", "seeds=[0]")
    done = run("orchestrator", *small_cell, *arms, "name=x", f"root={tmp_path}", "launcher=slurm", "launcher.wait=true")
    assert done.returncode == 0, done.stderr
    states = [(r["cell"], r["state"]) for r in metrics_log.read(tmp_path / "x/events.jsonl")]
    assert states.index(("learned/seed=0", "done")) < states.index(("played/seed=0", "running"))
    values = [
        [r["sidecar"]["values"] for r in metrics_log.read(tmp_path / f"x/{arm}/seed=0/metrics.jsonl") if "sidecar" in r]
        for arm in ("learned", "played")
    ]
    assert values[0] == values[1]


def test_branches_come_after_their_trunk_and_everything_is_extended(
    run: Run, small_cell: Sequence[str], tmp_path: Path
) -> None:
    falls = "'optim.schedule=wsd','optim.decay_fraction=0.5','optim.warmup_steps=2'"
    trunk = "['optim.schedule=constant','optim.warmup_steps=2']"
    late = f"[{falls},'branch={{arm: trunk, step: 4}}']"
    arms = (f"++arms={{trunk: {trunk}, late: {late}, apart: [{falls}]}}", "declared=[optim,branch]", "name=x")

    def launch(name: str, steps: int, *launcher: str) -> dict[str, bytes]:
        done = run("orchestrator", *small_cell, *arms, f"train.steps={steps}", f"root={tmp_path}/{name}", *launcher)
        assert done.returncode == 0, done.stderr
        last = f"seed=0/checkpoints/step_{steps:08}/model.safetensors"
        return {arm: (tmp_path / name / "x" / arm / last).read_bytes() for arm in ("trunk", "late", "apart")}

    on_slurm = ("launcher=slurm", "launcher.wait=true")
    short = launch("cluster", 8, *on_slurm)
    assert short["late"] == short["apart"]
    states = [(r["cell"], r["state"]) for r in metrics_log.read(tmp_path / "cluster/x/events.jsonl")]
    assert states.index(("trunk/seed=0", "done")) < states.index(("late/seed=0", "running"))
    assert launch("cluster", 12, *on_slurm) == launch("here", 12, "launcher=debug")


def test_a_failed_cell_leaves_the_others_and_says_why(run: Run, small_cell: Sequence[str], tmp_path: Path) -> None:
    arms = ("++arms={a: ['optim.lr=0.001'], b: ['optim.lr=1e20']}", "declared=[optim.lr]", "seeds=[0]")
    more = ("optim.weight_decay=0", "optim.warmup_steps=0", "name=x", f"root={tmp_path}", "launcher=slurm")
    done = run("orchestrator", *small_cell, *arms, *more, "launcher.wait=true")
    assert done.returncode == 2
    assert names(done.stderr, "b/seed=0 failed:", "nan", "optim.lr")
    assert (tmp_path / "x/comparison/report.html").is_file()
    assert EventLog(tmp_path / "x").counted("crashed") == {}, "what a user must mend is not tried again"
    told = run("orchestrator.status", str(tmp_path / "x")).stdout
    assert "1 failed" in told
    assert names(told, "optim.lr")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("launcher.slurm.partition=nowhere", ["invalid partition specified: nowhere"]),  # Slurm's own words
        ("launcher.slurm.gpus=4", ["Invalid generic resource (gres) specification"]),
        ("launcher.slurm.memory_gb=10000.5", ["Requested node configuration is not available"]),
        ("++launcher.slurm.options={nonsense: 1}", ["nonsense"]),
        ('launcher.slurm.qos="a\nb"', ["launcher.slurm.qos='a\\nb'"]),
        ("launcher.ranks=3 launcher.slurm.nodes=2", ["launcher.ranks=3", "launcher.slurm.nodes=2"]),
    ],
)
def test_what_slurm_would_refuse_is_a_sentence_before_anything_is_made(
    run: Run, small_cell: Sequence[str], tmp_path: Path, override: str, named: list[str]
) -> None:
    done = run("orchestrator", *small_cell, "name=x", f"root={tmp_path}/out", "launcher=slurm", *override.split(" "))
    assert done.returncode == 2, done.stderr
    assert names(done.stderr, *named)
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/x").exists()


def test_an_array_larger_than_the_cluster_takes_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    largest = 1001  # Slurm's default
    Slurm(tmp_path / "x").check_submission(Config(), largest)
    with pytest.raises(UserError, match=naming("1002 tasks", "launcher.slurm.array=false")):
        Slurm(tmp_path / "x").check_submission(Config(), largest + 1)


def test_only_jobs_of_the_experiment_are_believed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`Slurm.states` reads squeue's own output for a script."""
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")  # of a user who never looks at what waits
    script = tmp_path / "it's | x/jobs/.submission_file_1.sh"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/bash\ntrue\n")
    ask = ("sbatch", "--parsable", "--begin=now+1hour", "-o", "/dev/null")
    ours, theirs = (cluster.run(*ask, *body).strip() for body in ((str(script),), ("--wrap", "true")))
    elsewhere = tmp_path / "y/jobs/.submission_file_1.sh"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text(script.read_text())
    other = cluster.run(*ask, str(elsewhere)).strip()
    found = Slurm(tmp_path / "it's | x").states([ours, other])
    assert found == {ours: job_state("PENDING", "BeginTime")}
    cluster.run("scancel", ours, theirs, other)


def test_without_slurm_it_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, run: Run, small_cell: Sequence[str], cluster: Cluster, tmp_path: Path
) -> None:
    monkeypatch.setitem(cluster.env, "PATH", "/nowhere")
    done = run("orchestrator", *small_cell, "name=x", f"root={tmp_path}", "launcher=slurm")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert names(done.stderr, "launcher=slurm", "sbatch", "PATH")


def test_what_comes_from_the_configuration_is_quoted(run: Run, small_cell: Sequence[str], tmp_path: Path) -> None:
    """A name that is full of shell, and set-up lines that are shell by intent."""
    name = 'it\'s $(touch pwned); `touch pwned` & "*" > pwned'
    lines = f"launcher.slurm.setup=['export SEEN=here', 'echo $SEEN > {tmp_path}/seen']"
    written = name.replace("\\", "\\\\").replace("'", "\\'")
    options = ["++launcher.slurm.options={comment: '; touch pwned', nice: 5}", lines, f"name='{written}'"]
    done = run("orchestrator", *small_cell, f"root={tmp_path}", "launcher=slurm", "launcher.wait=true", *options)
    assert done.returncode == 0, done.stderr
    assert EventLog(tmp_path / name).last()["main/seed=0"].state == "done"
    assert (tmp_path / "seen").read_text() == "here\n"
    assert [path.name for path in tmp_path.rglob("pwned")] == []


def test_readings_are_jobs_of_low_priority(
    cluster: Cluster, run: Run, small_cell: Sequence[str], tmp_path: Path
) -> None:
    more = ("forensics=beside", "train.steps=600", "forensics.every=150", "train.checkpoint_every=150")
    where = ("name=x", f"root={tmp_path}", "launcher=slurm", "launcher.slurm.side_partition=spare")
    done = run("orchestrator", *small_cell, *more, *where, "launcher.wait=true")
    assert done.returncode == 0, done.stderr
    cell = tmp_path / "x/main/seed=0"
    assert len(list((cell / "forensics").glob("step_*.json"))) == 5
    assert list((cell / "forensics").glob("*.replaced")) == []
    jobs = cluster.run("squeue", "-h", "-t", "all", "-n", "x-readings", "-o", "%i %P %Q").split("\n")
    assert [line.split()[1] for line in jobs if line] != []
    assert {line.split()[1] for line in jobs if line} == {"spare"}


def test_several_ranks_are_tasks_of_one_job(
    cluster: Cluster, run: Run, small_cell: Sequence[str], tmp_path: Path
) -> None:
    where = ("name=x", f"root={tmp_path}", "launcher=slurm", "launcher.ranks=2", "launcher.slurm.cpus=1")
    done = run("orchestrator", *small_cell, *where, "launcher.wait=true")
    assert done.returncode == 0, done.stderr
    (begun,) = [
        r for r in metrics_log.read(tmp_path / "x/events.jsonl") if r["state"] == "running" and "main" in r["cell"]
    ]
    assert begun["environment"]["ranks"] == 2
    assert cluster.state(begun["job"]) == "COMPLETED"


def test_a_second_launcher_leaves_what_is_queued_to_slurm(
    cluster: Cluster, run: Run, small_cell: Sequence[str], tmp_path: Path
) -> None:
    options = [
        *small_cell,
        "name=x",
        f"root={tmp_path}",
        "launcher=slurm",
        "++launcher.slurm.options={begin: now+1hour}",
    ]
    assert run("orchestrator", *options).returncode == 0
    events = EventLog(tmp_path / "x")
    job = events.last()["main/seed=0"].job
    again = run("orchestrator", *options)
    assert again.returncode == 0, again.stderr
    assert names(again.stdout, "Slurm", "main/seed=0", f"job {job}")
    assert events.last()["main/seed=0"].job == job
    assert "1 queued" in run("orchestrator.status", str(tmp_path / "x")).stdout
    resumed = run("orchestrator.status", str(tmp_path / "x"), "--resume", "all")
    assert resumed.returncode == 0, resumed.stderr
    assert cluster.state(job) == "CANCELLED"
    assert events.last()["main/seed=0"].job != job
    assert run("orchestrator.status", str(tmp_path / "x"), "--cancel").returncode == 0
    wait_for(lambda: cluster.state(events.last()["main/seed=0"].job) == "CANCELLED")


def test_a_search_waits_for_its_trials_and_a_job_heeds_the_budget(
    run: Run, small_cell: Sequence[str], tmp_path: Path
) -> None:
    space = ("++search.space={optim.lr: [1e-3, 4e-3]}", "search.trials=2", "search.lengths=[1.0]", "seeds=[0]")
    command = ("orchestrator", *small_cell, *space, "name=x", f"root={tmp_path}", "launcher=slurm")
    done = run(*command, "launcher.wait=true")
    assert done.returncode == 0, done.stderr
    assert names(done.stdout, "Explored 2 settings", "b − a")
    assert {entry.state for entry in EventLog(tmp_path / "x").last().values()} == {"done"}
    spent = run(*command, "launcher.wait=true", "seeds=[0,1]", "budget.core_hours=1e-6")
    assert spent.returncode == 2, spent.stdout
    assert "budget.core_hours" in spent.stderr
    assert {e.state for cell, e in EventLog(tmp_path / "x").last().items() if cell.endswith("=1")} == {"stopped"}
