"""Where played-back decisions come from, and what is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator import schedule
from orchestrator.__main__ import CONF, compose
from orchestrator.experiment import Cell, experiment_of
from orchestrator.launch import _first_ready

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
    sources = [schedule.source(cell.config, Path("out/played")) for cell in found]
    assert sources == [None] * 3 + [Path(f"out/played/learned/seed={seed}") for seed in (2, 9, 4)]


def test_a_cell_waits_for_the_one_whose_decisions_it_plays() -> None:
    learned, other, replayed, last = cells(ARMS, "declared=[sidecar]", "seeds=[0,1]")
    assert schedule.source(replayed.config, replayed.directory.parents[1]) == other.directory
    assert _first_ready([replayed, last], [replayed, last, other]) == 1  # `last` plays the finished `learned`
    assert _first_ready([replayed, last], [replayed, last, other, learned]) is None
    assert _first_ready([replayed, last], [replayed, last]) == 0


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["sidecar=decay", "sidecar.mode=replay"], "sidecar.mode=replay needs sidecar.schedule: name an arm"),
        (["sidecar=decay", "sidecar.schedule=a"], "sidecar.schedule=a has no effect with sidecar.mode=learn"),
        (["sidecar=decay", "sidecar.mode=permute", "sidecar.schedule=a"], "is no arm of this experiment"),
        (["sidecar=decay", "sidecar.mode=random", "sidecar.schedule=no/where"], "holds no ledger.jsonl: name a cell"),
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
    assert not list(tmp_path.glob("outputs/*/*/seed=*/ledger.jsonl"))
