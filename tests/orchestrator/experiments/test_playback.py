"""Where played-back decisions come from, and what is refused before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator.common.errors import UserError
from orchestrator.config.compose import CONF, compose
from orchestrator.experiments import playback
from orchestrator.experiments.experiment import Cell, experiment_of
from orchestrator.launch.order import first_ready

ARMS = (
    "++arms={learned: ['sidecar=decay'], replayed: ['sidecar=decay','sidecar.mode=replay','sidecar.schedule=learned',"
    "'sidecar.schedule_seed=next']}"
)


def cells(*overrides: str) -> tuple[Cell, ...]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return experiment_of([*overrides, "name=played"], compose).cells


def test_the_next_seed_is_the_next_and_the_last_ones_is_the_first() -> None:
    found = cells(ARMS, "declared=[sidecar]", "seeds=[4,2,9]")
    sources = [playback.source(cell.config, Path("out/played")) for cell in found]
    assert sources == [None] * 3 + [Path(f"out/played/learned/seed={seed}") for seed in (2, 9, 4)]


def test_a_cell_waits_for_the_one_whose_decisions_it_plays() -> None:
    learned, other, replayed, last = cells(ARMS, "declared=[sidecar]", "seeds=[0,1]")
    assert playback.source(replayed.config, replayed.directory.parents[1]) == other.directory
    assert first_ready([replayed, last], [replayed, last, other]) == 1  # `last` plays the finished `learned`
    assert first_ready([replayed, last], [replayed, last, other, learned]) is None
    assert first_ready([replayed, last], [replayed, last]) == 0


PLAY = "'sidecar=decay','sidecar.mode=replay'"


@pytest.mark.parametrize(
    ("arms", "seeds", "reason"),
    [
        (f"{{a: [{PLAY},'sidecar.schedule=b'], b: [{PLAY},'sidecar.schedule=a']}}", "[0,1]",
         r"Arm 'a': sidecar.schedule=b names an arm with sidecar.mode=replay, which makes no decisions of its own"),
        (f"{{a: [{PLAY},'sidecar.schedule=a'], b: ['sidecar=decay']}}", "[0,1]", "with sidecar.mode=replay"),
        (f"{{a: ['sidecar=none'], b: [{PLAY},'sidecar.schedule=a']}}", "[0]",
         r"Arm 'b': sidecar.schedule=a names an arm with sidecar.mode=off.*name an arm with sidecar.mode=learn\."),
        (f"{{a: ['sidecar=decay','sidecar.mode=fixed'], b: [{PLAY},'sidecar.schedule=a']}}", "[0]", "mode=fixed"),
        (f"{{a: ['sidecar=decay'], b: [{PLAY},'sidecar.schedule=a','sidecar.channels=[decay,lr_scale]']}}", "[0]",
         r"schedule=a names an arm that learns nothing for sidecar.channels=\['lr_scale'\]: drop them here"),
        (ARMS.removeprefix("++arms="), "[3]", r"schedule_seed=next with seeds=\[3\] would play back the cell's own"),
    ],
)  # fmt: skip
def test_only_an_arm_that_learns_elsewhere_is_played_back(arms: str, seeds: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        cells(f"++arms={arms}", "declared=[sidecar]", f"seeds={seeds}")


def test_a_path_is_read_before_anything_is_trained(tmp_path: Path) -> None:
    played = ["sidecar=decay", "sidecar.mode=replay", f"sidecar.schedule={tmp_path}"]
    plain, decided = {"step": 0, "digest": ""}, {"step": 1, "digest": "", "sidecar": {"step": 1}}
    for records, reason in (
        ([plain, plain | {"step": 2, "test": {"code": 1.0}}], "no run whose sidecar decided anything"),
        ([plain, decided], "not finished"),
        ([plain, decided, plain | {"step": 2, "test": {"code": 1.0}}], None),
    ):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if reason is None:
            assert len(cells(*played)) == 1
            continue
        with pytest.raises(UserError, match=f"sidecar.schedule={tmp_path} names {tmp_path}, which is {reason}"):
            cells(*played)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["sidecar=decay", "sidecar.mode=replay"], "sidecar.mode=replay needs sidecar.schedule: name an arm"),
        (["sidecar=decay", "sidecar.schedule=a"], "sidecar.schedule=a has no effect with sidecar.mode=learn"),
        (["sidecar=decay", "sidecar.mode=permute", "sidecar.schedule=a"], "is no arm of this experiment"),
        (["sidecar=decay", "sidecar.mode=random", "sidecar.schedule=no/where"], "holds no metrics.jsonl: name a cell"),
        (["sidecar=decay", "sidecar.bounds.decay=[0.1,60]"], r"channel 'decay' may take 0.36 of a weight per step"),
        (["sidecar=decay", "sidecar.bounds.decay=8"], "sidecar.bounds.decay=8 is no pair of numbers"),
        (["sidecar=all", "sidecar.bounds.residual_gain=[0.5,3]"], "'residual_gain' may multiply what a branch writes"),
        (["sidecar=all", "sidecar.bounds.lr_scale=[0.5,20]"], "'lr_scale' may reach a learning rate of 0.04"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_training(
    orchestrate: Callable[..., int],
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    reason: str,
) -> None:
    assert orchestrate(*small, *overrides) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("outputs/*/*/seed=*/metrics.jsonl"))
