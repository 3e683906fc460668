"""A branch begins at its trunk's state, bit for bit, and its directory is that of any other cell."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchestrator.analysis.cells import read_cell, read_experiment
from orchestrator.common.errors import UserError
from orchestrator.experiments.corpora import begun_with, prepare_for
from orchestrator.experiments.experiment import Cell
from orchestrator.experiments.run_directory import record_data, reopen
from orchestrator.forensics.reading import read_reading
from orchestrator.launch import checks
from orchestrator.storage import checkpoint, metrics_log, steps
from orchestrator.training.trainer import Callback, Trainer
from tests.naming import naming
from tests.orchestrator.training.cells import (
    Crash,
    CrashAt,
    clock_of_seconds,
    complete,
    fingerprints,
    new_experiment,
    rows,
    run_with,
)

DECAYING = "'optim.schedule=wsd','optim.decay_fraction=0.5'"  # of 12 steps, the last 6
LATE = f"trunk: ['optim.schedule=constant'], late: [{DECAYING},'branch={{arm: trunk, step: 6}}']"
DECLARED = "declared=[optim,branch,sidecar,data,train.steps]"


def cells(small: list[str], root: Path, arms: str, *options: str) -> dict[str, Cell]:
    words = [*small, f"++arms={{{arms}}}", DECLARED, "optim.warmup_steps=3", "name=x", *options]
    return {cell.config.arm: cell for cell in new_experiment(words, root).cells}


def tensors(cell: Cell) -> dict[str, str]:
    return {name: digest for name, digest in fingerprints(cell).items() if "safetensors" in name}


class CountUpdates(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def after_step(self, run: Trainer) -> None:
        if run.step:
            self.steps.append(run.step)


@pytest.mark.parametrize(
    ("options", "crash"), [([], None), (["sidecar=all", "sidecar.interval=3", "sidecar.warmup=0"], 7)]
)
def test_a_branch_is_bitwise_the_run_from_the_start(
    small: list[str], tmp_path: Path, options: list[str], crash: int | None
) -> None:
    """A trunk at a constant rate, left as the rate begins to fall, makes what one run with both makes."""
    of = cells(
        [*small, "train.keep_states=1"], tmp_path,
        f"{LATE}, apart: [{DECAYING}]",
        *options,
    )  # fmt: skip
    counted = CountUpdates()
    for arm in ("trunk", "late"):
        if crash is not None:
            with pytest.raises(Crash):
                run_with(of[arm], counted, CrashAt(crash))
        assert run_with(of[arm], counted)
    again = [] if crash is None else [7]  # from the checkpoint of step 6
    assert sorted(counted.steps) == sorted([*range(1, 13), *range(7, 13), *again, *again]), "steps 1 to 6 once for both"
    assert complete(of["apart"])
    late, apart = tensors(of["late"]), tensors(of["apart"])
    assert late == {name: apart[name] for name in late}
    assert {f"checkpoints/step_{step:08}/model.safetensors" for step in (6, 8, 12)} <= late.keys()
    for step, file in steps.readings_in(of["apart"].directory).items():
        assert read_reading(steps.reading_of(of["late"].directory, step)).layers == read_reading(file).layers
    assert [{k: v for k, v in row.items() if k != "trunk"} for row in rows(of["late"])] == rows(of["apart"])
    assert all(row.get("trunk") == ("trunk/seed=0" if row["step"] <= 6 else None) for row in rows(of["late"]))
    kept = checkpoint.path_of(of["trunk"].directory / "checkpoints", 6)
    assert not checkpoint.is_reduced(kept), "train.keep_states=1 does not reach it"


def test_nothing_of_the_trunk_is_needed_once_a_branch_has_begun(small: list[str], tmp_path: Path) -> None:
    of = cells(
        small, tmp_path, f"trunk: ['optim.schedule=constant'], late: [{DECAYING},'branch={{arm: trunk, step: 6}}']"
    )
    assert complete(of["trunk"])
    with pytest.raises(Crash):
        run_with(of["late"], CrashAt(7))
    of["trunk"].directory.rename(tmp_path / "gone")
    assert complete(of["late"])
    own = of["late"].directory
    assert list(steps.readings_in(own)) == [0, 6, 12]
    assert checkpoint.key(own / "checkpoints/step_00000006") == checkpoint.key(
        tmp_path / "gone/checkpoints/step_00000006"
    )
    cell = read_cell(own, "late", 0)
    assert cell.missing is None
    assert [record["step"] for record in cell.metrics] == [0, 2, 4, 6, 8, 10, 12]


def test_who_has_only_begun_is_not_finished(small: list[str], tmp_path: Path) -> None:
    """The trunk's last record has a test loss, which is not the branch's."""
    arms = "trunk: ['train.steps=8'], on: ['train.steps=12','branch={arm: trunk, step: 8}']"
    of = cells([o for o in small if "train.steps" not in o], tmp_path, arms)
    assert complete(of["trunk"])
    with pytest.raises(Crash):
        run_with(of["on"], CrashAt(9))
    assert read_cell(of["on"].directory, "on", 0).missing is not None
    assert complete(of["on"])
    assert read_cell(of["on"].directory, "on", 0).missing is None


def test_a_branch_may_change_the_data_and_take_up_a_sidecar(small: list[str], tmp_path: Path) -> None:
    more = "'data.domains.code.weight=3','sidecar=decay','sidecar.interval=2','sidecar.warmup=0'"
    of = cells(small, tmp_path, f"trunk: ['sidecar=none'], other: [{more},'branch={{arm: trunk, step: 6}}']")
    assert complete(of["trunk"])
    with pytest.raises(Crash):
        run_with(of["other"], CrashAt(7))
    assert complete(of["other"])
    decided = [row["sidecar"]["step"] for row in rows(of["other"]) if "sidecar" in row]
    assert decided == [7, 9, 11]


def test_a_branch_on_another_corpus_is_resumed_and_compared_on_its_own(small: list[str], tmp_path: Path) -> None:
    """Its log begins with the trunk's records, whose digest is that of the trunk's corpus."""
    of = cells(small, tmp_path, "trunk: [], other: ['data.domains.code.path=prose','branch={arm: trunk, step: 6}']")
    corpora = {arm: prepare_for(cell.config, tmp_path / "x") for arm, cell in of.items()}
    assert corpora["trunk"].digest != corpora["other"].digest
    record_data(reopen(tmp_path / "x"), corpora)
    assert complete(of["trunk"])
    with pytest.raises(Crash):
        run_with(of["other"], CrashAt(7))
    assert begun_with(of["other"].directory) is None
    assert complete(of["other"])
    assert [cell.missing for cell in read_experiment(tmp_path / "x").cells] == [None, None]


@pytest.mark.parametrize("options", [[], ["train.log_every=4"]])  # 4: a record of the branch counts steps of the trunk
def test_the_time_of_a_branch_is_its_own(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    clock_of_seconds(monkeypatch)
    arms = "trunk: [], late: ['branch={arm: trunk, step: 6}'], last: ['branch={arm: late, step: 8}']"
    of = cells(small, tmp_path, arms, *options)
    assert run_with(of["trunk"])
    for arm in ("late", "last"):
        with pytest.raises(Crash):
            run_with(of[arm], CrashAt(9))  # resumed from step 8
        assert run_with(of[arm])
    for arm, begins in (("late", 6), ("last", 8)):
        own = [row for row in metrics_log.read(of[arm].directory / "metrics.jsonl") if row["step"] > begins]
        assert [row["seconds"] for row in own] == [row["step"] - begins for row in own]
        assert {row["tokens_per_second"] for row in own} == {2 * 32 / 1.0}


def test_a_branch_without_the_sidecar_begins_with_what_was_evaluated(small: list[str], tmp_path: Path) -> None:
    learned = "'sidecar=all','sidecar.interval=3','sidecar.warmup=0'"
    of = cells(small, tmp_path, f"trunk: [{learned}], plain: ['sidecar=none','branch={{arm: trunk, step: 6}}']")
    assert complete(of["trunk"])
    run = Trainer(of["plain"].config, of["plain"].directory, 1, [])
    run.resume()
    evaluated = checkpoint.load_decoder(of["trunk"].directory / "checkpoints/step_00000006")
    for (name, now), (_, then) in zip(run.model.named_parameters(), evaluated.named_parameters(), strict=True):
        assert now.equal(then), name


def test_a_branch_with_any_schedule_is_extended_from_where_it_begins(small: list[str], tmp_path: Path) -> None:
    arms = "trunk: ['train.steps=6'], late: ['branch={arm: trunk, step: 6}']"
    less = [word for word in small if "train.steps" not in word]

    def launch(last: int, name: str) -> Cell:
        late = arms.replace("late: [", f"late: ['train.steps={last}',")
        of = cells([*less, "train.keep_states=1"], tmp_path / name, late)
        assert name == "extended" or complete(of["trunk"])
        return of["late"]

    for last, name in ((9, "short"), (12, "whole")):
        assert complete(launch(last, name))
    (tmp_path / "short").rename(tmp_path / "extended")
    (tmp_path / "extended/x/trunk/seed=0/checkpoints").rename(tmp_path / "gone")
    extended, whole = launch(12, "extended"), tmp_path / "whole/x/late/seed=0"
    assert complete(extended)
    for name, digest in tensors(extended).items():
        assert hashlib.sha256((whole / name).read_bytes()).hexdigest() == digest


def test_a_branch_waits_for_the_state_of_its_trunk(small: list[str], tmp_path: Path) -> None:
    of = cells(
        small, tmp_path, f"trunk: ['optim.schedule=constant'], late: [{DECAYING},'branch={{arm: trunk, step: 6}}']"
    )
    with pytest.raises(UserError, match=naming("branch.step=6", of["trunk"].directory, "train that cell first")):
        complete(of["late"])
    assert complete(of["trunk"])
    assert complete(of["late"])


def test_a_trunk_without_the_state_is_refused_before_anything_is_launched(small: list[str], tmp_path: Path) -> None:
    """The trunk is past the step and kept its weights alone; or nobody trains it."""

    def launch(step: int) -> None:
        late = f"from_{step}: ['optim.schedule=wsd','branch={{arm: trunk, step: {step}}}']"
        words = [*small, f"++arms={{trunk: ['optim.schedule=constant'], {late}}}", DECLARED, "name=x"]
        checks.check(new_experiment(words, tmp_path))

    launch(6)
    experiment = new_experiment([*small, "++arms={trunk: ['optim.schedule=constant']}", DECLARED, "name=x"], tmp_path)
    assert complete(experiment.cells[0])
    with pytest.raises(UserError, match=naming("from_5/seed=0", "branch.step=5", "6, 8, 12")):
        launch(5)
    launch(8)
    alone = "'branch={arm: trunk, step: 9, experiment: " + f"{tmp_path}/x" + "}'"
    words = [*small, f"++arms={{base: [], late: [{alone}]}}", DECLARED, "name=y", "optim.schedule=constant"]
    with pytest.raises(UserError, match=naming("branch.step=9", tmp_path / "x/trunk/seed=0", "6, 8, 12")):
        checks.check(new_experiment(words, tmp_path))
    (tmp_path / "x/trunk/seed=0/checkpoints").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=naming("branch.step=9", tmp_path / "x/trunk/seed=0", "train that cell first")):
        checks.check(new_experiment(words, tmp_path))


def test_a_branch_plays_its_own_formula_and_not_its_trunks(small: list[str], tmp_path: Path) -> None:
    tilt = "'sidecar=decay_by_depth','sidecar.coefficients.decay.depth="
    of = cells(
        small, tmp_path,
        f"trunk: [{tilt}-0.5'], same: [{tilt}-0.5','branch={{arm: trunk, step: 6}}'], "
        f"other: [{tilt}0.9','branch={{arm: trunk, step: 6}}']",
    )  # fmt: skip
    assert complete(of["trunk"])
    with pytest.raises(Crash):
        run_with(of["other"], CrashAt(9))
    assert complete(of["other"])
    assert complete(of["same"])
    played = {arm: [row["sidecar"] for row in rows(of[arm]) if "sidecar" in row] for arm in of}
    assert [record["step"] for record in played["trunk"]] == [0]
    assert [record["step"] for record in played["other"]] == [0, 7], "and a restart plays nothing anew"
    assert played["other"][0]["values"] == played["trunk"][0]["values"] != played["other"][1]["values"]
    assert tensors(of["same"]).items() <= tensors(of["trunk"]).items()
