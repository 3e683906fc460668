"""The plan's counts against files of a real run, and arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.common.formatting import duration, size, work
from orchestrator.config import load, schema
from orchestrator.config.compose import compose
from orchestrator.config.schema import (
    Config,
    DataConfig,
    DomainConfig,
    Gpu,
    PlanConfig,
    TrainConfig,
)
from orchestrator.experiments.experiment import decoder_spec, experiment_of
from orchestrator.interventions.intervene import Options, intervene
from orchestrator.interventions.progress import Progress
from orchestrator.plan.arm import ArmPlan
from orchestrator.plan.benchmark import run_benchmark
from orchestrator.plan.cost import cost_of, looks_of, makespan
from orchestrator.plan.footprint import footprint_of
from orchestrator.plan.hardware import hardware_for
from orchestrator.plan.view import _rows
from tests.naming import names
from tests.orchestrator.plan.paper import PAPER

Orchestrate = Callable[..., int]
Printed = pytest.CaptureFixture[str]


def bytes_of(directory: Path, *patterns: str) -> int:
    return sum(file.stat().st_size for pattern in patterns for file in directory.glob(pattern) if file.is_file())


def test_the_papers_checkpoints_by_hand() -> None:
    config = Config(model=PAPER, data=DataConfig({"code": DomainConfig()}), train=TrainConfig(steps=100_000))
    plan = ArmPlan("uniform", config, decoder_spec(config))
    attention, ffn = 4 * 1168 * 18 * 64, 3 * 1168 * 3504
    tables, norms = 2 * 117_000 * 1168, (11 * 4 + 1) * 1168
    params = 11 * (attention + ffn) + tables + norms
    assert plan.params == params == 467_626_320
    assert plan.kept == len(plan.saved) == 100_000 // 200 + 1
    assert plan.disk == pytest.approx(501 * 4 * params + 2 * 8 * params, rel=1e-4)
    assert len(plan.records) == 10_001
    assert len(plan.evaluations) == 2_001
    assert plan.evaluation_flops == 2_002 * 8192 * plan.forward
    learning = replace(config, sidecar=replace(config.sidecar, mode=schema.SidecarMode.learn))
    traced = ArmPlan("uniform", learning, plan.spec)
    assert traced.traces == 11 * (attention + ffn) + tables  # one per entry of a matrix, all of which decay
    assert traced.disk - plan.disk == pytest.approx(2 * 4 * traced.traces, rel=0.02)  # and state.json
    for checkpoints, states, expected in (
        (None, None, 4 * params + 500 * 12 * params),
        (None, 1000, 4 * params + 500 * 12 * params),
        (2, 2, 28 * params),
        (2, 1, 20 * params),
    ):
        few = replace(config, train=replace(config.train, keep_checkpoints=checkpoints, keep_states=states))
        assert ArmPlan("uniform", few, plan.spec).disk == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        ("width=ramp", "tracker=offline", "sidecar=decay", "sidecar.interval=2", "train.log_every=5"),
        (
            "tracker=offline", "train.keep_checkpoints=1", "train.keep_states=null", "model.norm=pre",
            "sidecar=decay", "sidecar.channels=[residual_gain,lr_scale]", "sidecar.interval=3", "forensics.every=5",
        ),
        ("train.steps=11", "model.tie_embeddings=false", "train.keep_states=1"),
        ("width=ramp", "tracker=offline", "interventions.every=6", "interventions.edits=[delete,repeat]"),
    ],
)  # fmt: skip
def test_a_real_run_leaves_what_was_planned(
    overrides: tuple[str, ...], orchestrate: Orchestrate, small: list[str], tmp_path: Path
) -> None:
    assert orchestrate(*small, "launcher=debug", *overrides) == 0
    cells = list((tmp_path / "outputs").glob("*/*/seed=0"))
    assert cells
    for cell in cells:
        config = load.from_file(cell / "config.yaml")
        plan = ArmPlan(config.arm, config, decoder_spec(config))
        assert plan.kept == len(list(cell.glob("checkpoints/step_*")))
        assert len(plan.readings) == len(list(cell.glob("forensics/step_*.json")))
        assert len(plan.records) == len((cell / "metrics.jsonl").read_text().splitlines())
        start, later = plan.checkpoint_bytes
        # of so small a model a fifth is JSON, whose numbers have more or fewer digits
        reduced = (start, later) if config.train.keep_states is None else plan.reduced_bytes
        assert reduced[0] == pytest.approx(bytes_of(cell, "checkpoints/step_00000000/*"), rel=0.1)
        assert later == pytest.approx(bytes_of(cell, f"checkpoints/step_{config.train.steps:08d}/*"), rel=0.1)
        assert plan.disk == pytest.approx(bytes_of(cell, "checkpoints/*/*"), rel=0.1)
        written = footprint_of(plan, run_benchmark(config, plan.spec))
        assert written.metrics == pytest.approx(bytes_of(cell, "metrics.jsonl"), rel=0.1)
        assert written.readings == pytest.approx(bytes_of(cell, "forensics/step_*.json"), rel=0.2)
        assert len(plan.interventions) == len(list(cell.glob("interventions/step_*.json")))
        assert written.interventions == pytest.approx(bytes_of(cell, "interventions/step_*.json"), rel=0.2)
        if config.tracker.mode == schema.TrackerMode.off:
            assert written.wandb == written.rows == 0
        else:
            assert 2 / 3 < written.wandb / bytes_of(cell, "wandb/*/**/*") < 1.5
            assert 2 / 3 < written.log / bytes_of(cell, "wandb/*/*.wandb") < 1.5


def test_interventions_compute_what_is_counted(
    orchestrate: Orchestrate, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert orchestrate(*small, "launcher=debug", "width=ramp", "train.steps=6", "tracker=off") == 0
    (cell,) = (tmp_path / "outputs").glob("*/*/seed=0")
    config = load.from_file(cell / "config.yaml")
    for edits, documents in ((["write_mean"], 2), (["repeat", "swap"], 1000)):
        config.interventions = schema.InterventionsConfig(6, [schema.EditName(edit) for edit in edits], documents)
        plan = ArmPlan(config.arm, config, decoder_spec(config))
        with FlopCounterMode(display=False) as counter:
            found = intervene(cell, Options(tuple(edits), documents=documents), Progress(), device="cpu")
        assert sum(found["documents"].values()) == plan.documents
        # a changed layer may take no pass, as here, or two; and the model is looked at with a short row beforehand
        assert plan.intervention_flops == pytest.approx(counter.get_total_flops(), rel=0.3)


def test_what_deleting_layers_takes(planned: Callable[..., str], small: list[str]) -> None:
    run = (*small, "name=x", "train.steps=12", "launcher=slurm")
    assert "intervention" not in planned(*run)
    every, often = (planned(*run, f"interventions.every={n}", "interventions.documents=3") for n in (12, 6))
    documents, layers = 3 * 3, 3
    assert names(every, "on 2 checkpoints", f"{documents * (layers + 1)} forward passes")
    assert names(every, "memory", "of it for a second model")
    gpu = planned(*run, "interventions.every=12", "plan.gpu=h100")
    assert names(gpu, "of main memory beside it for a second model")
    assert names(often, "on 3 checkpoints", "interventions")
    edits = ",".join(edit for edit in schema.EditName)
    much = ("interventions.documents=100000", "data.heldout_tokens=1000000", f"interventions.edits=[{edits}]")
    assert names(planned(*run, "interventions.every=6", *much), "raise interventions.every, which is 6")


def test_a_gpu_of_the_data_sheet_by_hand() -> None:
    config = Config(model=PAPER, plan=PlanConfig(Gpu.h100, mfu=0.5))
    hardware = hardware_for(config, decoder_spec(config))
    assert hardware.flops == 494.7e12
    assert hardware.updates == pytest.approx(3.35e12 / 48)
    assert hardware.memory == 80e9


def brute_makespan(seconds: list[int], slots: int) -> int:
    """The same second by second."""
    waiting, running, now = list(seconds), [], 0
    while waiting or running:
        while waiting and len(running) < slots:
            running.append(waiting.pop(0))
        running = [left - 1 for left in running if left > 1]
        now += 1
    return now


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_wall_time_is_that_of_a_queue(slots: int) -> None:
    seconds = [5, 1, 9, 2, 2, 7, 3]
    assert makespan(seconds, slots) == brute_makespan(seconds, slots)


def lines_of(printed: Printed) -> Iterator[str]:
    yield from printed.readouterr().out.splitlines()


def test_a_plan_for_other_hardware_says_what_stands_in_the_way(
    orchestrate: Orchestrate, capsys: Printed, tmp_path: Path
) -> None:
    run = (
        "+experiment=width_ablation",
        "model=paper_478m",
        "question='What [bold] would it cost?'",
        "seeds=[0,1,2,3,4,5,6,7]",
    )
    asked = ("train.steps=100000", "dry_run=true", "plan.gpu=h100", "plan.mfu=0.4", f"root={tmp_path}/out")
    assert orchestrate(*run, *asked, "forensics=beside", "launcher.parallel=5") == 0
    printed = list(lines_of(capsys))
    text = " ".join(" ".join(printed).split())
    assert max(map(len, printed[2:])) <= 100  # the second line ends in a path, which stays whole
    assert "What [bold] would it cost?" in text
    assert names(text, "jobs 32 16 cells", "5 at once")
    assert "GPU-hours" in text
    assert names(text, "H100 SXM 80 GB", "plan.mfu=0.4", "989", "TFLOP/s")
    assert "8,016 readings" in text
    assert names(text, "15.5 TB 8,016")
    assert names(text, "train.keep_checkpoints=2", "train.checkpoint_every and forensics.every", "200 and 200")
    assert not (tmp_path / "out").exists()
    assert orchestrate(run[0], *asked, "train.batch_size=32768") == 0
    assert names(capsys.readouterr().out, "train.micro_batch_size", "32768")


def test_what_a_plan_reckons_with_is_no_part_of_the_experiment(
    orchestrate: Orchestrate, small: list[str], capsys: Printed
) -> None:
    assert orchestrate(*small, "launcher=debug", "name=once") == 0
    assert orchestrate(*small, "launcher=debug", "name=once", "plan.gpu=a100") == 0
    assert names(capsys.readouterr().out, "Nothing is left")
    assert orchestrate("dry_run=true", "plan.gpu=h101") == 2
    assert names(capsys.readouterr().err, "plan.gpu=h101", "a100, h100")
    assert orchestrate("dry_run=true", "plan.mfu=1.5") == 2
    assert names(capsys.readouterr().err, "plan.mfu=1.5", "(0, 1]")


def test_units() -> None:
    assert [duration(s) for s in (0.123, 90, 7200, 200_000, 8e7)] == [
        "0.12 seconds", "90.0 seconds", "2.0 hours", "2.3 days", "2.5 years",
    ]  # fmt: skip
    assert [size(b) for b in (12, 1500, 2_500_000, 61.2e12)] == ["12 bytes", "1.5 kB", "2.5 MB", "61.2 TB"]
    assert [work(s, "GPU") for s in (60, 36_000, 4e6)] == ["1.0 GPU-minutes", "10.0 GPU-hours", "1,111 GPU-hours"]


@pytest.fixture
def planned(orchestrate: Orchestrate, capsys: Printed) -> Callable[..., str]:
    """The plan of these overrides, as printed, on one line."""

    def plan(*overrides: str) -> str:
        capsys.readouterr()
        assert orchestrate(*overrides, "dry_run=true") == 0
        return " ".join(capsys.readouterr().out.split())

    return plan


def test_the_plan_prints_the_papers_exact_counts(planned: Callable[..., str]) -> None:
    short = ("train.seq_len=64", "train.batch_size=1")
    printed = planned("+experiment=width_ablation", "seeds=[0,1]", "model=paper_478m", *short)
    assert "1168/3504 ×11" in printed
    assert "1024/3072" in printed
    assert "1372/4116" in printed
    assert "4 cells = 2 arms × seeds 0, 1" in printed
    assert "467,626,320" in printed
    assert "487,390,908" in printed
    assert "478,895,168" in planned("model=paper_24l", *short)


def test_ranks_share_time_and_memory_and_what_slurm_runs_is_counted(planned: Callable[..., str]) -> None:
    run = ("+experiment=width_ablation", "seeds=[0,1]", "model=paper_478m", "plan.gpu=h100", "train.batch_size=8")
    assert names(planned(*run, "launcher=slurm"), "jobs 5 4 cells", "4 at once")
    assert names(planned(*run, "launcher=slurm", "forensics=beside"), "jobs 25 4 cells", "20 readings")
    assert names(planned(*run, "launcher.ranks=8"), "8 processes")


@pytest.mark.parametrize(("more", "expected"), [([], 3), (["launcher.parallel=2"], 2)])
def test_slurm_runs_all_cells_at_once(
    planned: Callable[..., str], small: list[str], more: list[str], expected: int
) -> None:
    assert names(planned(*small, "seeds=[0,1,2]", "launcher=slurm", *more), "3 cells", f"{expected} at once")


def test_a_finished_cell_costs_nothing_more(orchestrate: Orchestrate, small: list[str], capsys: Printed) -> None:
    common = [*small, "launcher=debug", "name=mine"]
    assert orchestrate(*common, "seeds=[0,1]") == 0
    capsys.readouterr()
    assert orchestrate(*common, "seeds=[0,1,2]", "dry_run=true") == 0
    printed = capsys.readouterr().out
    assert names(printed, "3 cells", "2 are finished")
    (jobs,) = (line.split() for line in printed.splitlines() if line.startswith("jobs "))
    assert jobs[1:4] == ["1", "1", "cell;"]
    assert orchestrate(*common, "seeds=[0,1]", "dry_run=true") == 0
    printed = capsys.readouterr().out
    assert names(printed, "2 cells", "all finished")
    assert not [line for line in printed.splitlines() if line.startswith("jobs ")]


def test_with_seeds_until_decided_the_plan_says_what_it_costs_at_most(small: list[str], hydra: None) -> None:
    words = [
        *small, "name=x", "++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "launcher.parallel=3",
        "seeds=auto", "decide.min=2", "decide.max=5", "decide.step=2",
    ]  # fmt: skip
    cost = cost_of(experiment_of(words, compose))
    looks, (a, b) = looks_of(cost), (cell.seconds for cell in cost.arms.values())
    assert [look.wall_seconds for look in looks] == [makespan([a, a, b, b], 3), makespan([a, b, a, b], 3), max(a, b)]
    assert [look.device_seconds for look in looks] == pytest.approx([2 * (a + b), 2 * (a + b), a + b])
    (total, said) = {label: rest for label, *rest in _rows(cost)}["at most"]
    assert total == "10 cells"
    assert names(said, "core-minutes of compute", "wall time", "decide.max=5", "look at 2 pairs")
    for fixed in (["decide.max=2"], ["seeds=[0,1]"]):
        other = replace(cost, experiment=experiment_of([*words, *fixed], compose))
        assert "at most" not in {label for label, *_ in _rows(other)}


@pytest.mark.parametrize(("hours", "warned"), [(1e-6, True), (1e6, False)])
def test_the_plan_says_that_the_budget_has_no_room_for_all(
    small: list[str], orchestrate: Callable[..., int], capsys: pytest.CaptureFixture[str], hours: float, warned: bool
) -> None:
    assert orchestrate(*small, "name=x", "dry_run=true", f"budget.core_hours={hours}") == 0
    assert ("budget.core_hours=1e-06" in " ".join(capsys.readouterr().out.split())) == warned


@pytest.mark.parametrize(("interval", "warned"), [(1, True), (12, False)])
def test_forks_that_train_much_longer_than_their_run_are_told(
    planned: Callable[..., str], small: list[str], interval: int, warned: bool
) -> None:
    """A run of 12 steps forks four times at every interval, to its end: 4 · (12 + 11 + … + 1) steps, or 4 · 12."""
    forks = ("sidecar=decay", "sidecar.credit=forks", "++sidecar.coefficients={decay: {depth: 0.0}}", "sidecar.pairs=2")
    said = planned(*small, *forks, f"sidecar.interval={interval}", "sidecar.horizon=1.0")
    assert names(said, "312 steps", "sidecar.interval", "sidecar.pairs") == warned
