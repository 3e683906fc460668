"""Where played-back decisions come from, and what is refused before anything is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.compose import compose
from orchestrator.experiments.experiment import Cell, experiment_of
from tests.naming import names, naming

pytestmark = pytest.mark.usefixtures("hydra")


def cells(*overrides: str) -> tuple[Cell, ...]:
    return experiment_of([*overrides, "name=played"], compose).cells


PLAY = "'sidecar=decay','sidecar.mode=replay'"


@pytest.mark.parametrize(
    ("arms", "seeds", "named"),
    [
        (f"{{a: [{PLAY},'needs=b'], b: [{PLAY},'needs=c'], c: ['sidecar=decay']}}", "[0,1]",
         ["Arm 'a'", "needs=b", "sidecar.mode=replay"]),
        (f"{{a: ['sidecar=none'], b: [{PLAY},'needs=a']}}", "[0]", ["Arm 'b'", "needs=a", "sidecar.mode=off"]),
        (f"{{a: ['sidecar=decay','sidecar.mode=fixed'], b: [{PLAY},'needs=a']}}", "[0]", ["sidecar.mode=fixed"]),
        (f"{{a: ['sidecar=decay'], b: [{PLAY},'needs=a','sidecar.channels=[decay,lr_scale]']}}", "[0]",
         ["needs=a", "sidecar.channels=['lr_scale']"]),
        ("{a: ['sidecar=decay'], b: ['sidecar=decay_by_depth','needs=a']}", "[0]",
         ["Arm 'b'", "needs=a", "sidecar.coefficients"]),
    ],
)  # fmt: skip
def test_only_an_arm_that_learns_is_played_back(arms: str, seeds: str, named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)):
        cells(f"++arms={arms}", "declared=[sidecar,needs]", f"seeds={seeds}")


def test_an_arm_with_a_rule_is_played_back_too() -> None:
    arms = "{a: ['sidecar=alpha_decay'], b: ['sidecar=alpha_decay','sidecar.mode=permute','needs=a']}"
    assert len(cells(f"++arms={arms}", "declared=[sidecar,needs]", "seeds=[0]")) == 2


def test_a_path_is_read_before_anything_is_trained(tmp_path: Path) -> None:
    played = ["sidecar=decay", "sidecar.mode=replay", f"needs={tmp_path}"]
    plain, decided = {"step": 0, "digest": ""}, {"step": 1, "digest": "", "sidecar": {"step": 1}}
    for records, reason in (
        ([plain, plain | {"step": 2, "test": {"code": 1.0}}], "sidecar"),
        ([plain, decided], "finished"),
        ([plain, decided, plain | {"step": 2, "test": {"code": 1.0}}], None),
    ):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if reason is None:
            assert len(cells(*played)) == 1
            continue
        with pytest.raises(UserError, match=naming(f"needs={tmp_path}", reason)):
            cells(*played)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["sidecar=decay", "sidecar.mode=replay"], ["sidecar.mode=replay", "needs"]),
        (["sidecar=decay", "sidecar.mode=permute", "needs=a"], ["needs=a", "main", "@next"]),
        (["needs=main"], ["needs=main", "main needs main"]),
        (["sidecar=decay_by_depth", "+sidecar.coefficients.decay.deep=1"], ["'deep'", "depth", "down_proj"]),
        (["sidecar=decay_by_depth", "sidecar.coefficients.decay.depth=5"], ["'decay'", "0.1"]),
        (["sidecar=decay_by_depth", "sidecar.coefficients.decay.depth=much"], ["much", "{term: coefficient"]),
        (["sidecar=decay", "++sidecar.coefficients.decay.depth=1"], ["'learn'", "coefficients"]),
        (["sidecar=decay", "sidecar.mode=random", "needs=no/where"], ["needs=no/where", "metrics.jsonl"]),
        (["sidecar=decay", "sidecar.bounds.decay=[0.1,60]"], ["channel 'decay'", "0.36", "bounds.decay"]),
        (["sidecar=decay", "sidecar.bounds.decay=8"], ["sidecar.bounds.decay=8", "pair"]),
        (["sidecar=all", "sidecar.bounds.residual_gain=[0.5,3]"], ["channel 'residual_gain'", "3", "2"]),
        (["++optim.layer_lr={deep: 1}"], ["optim.layer_lr", "'deep'", "depth", "down_proj"]),
        (["++optim.layer_lr={depth: 6}"], ["optim.layer_lr", "optim.weight_decay"]),
        (["sidecar=alpha_decay"], ["rule 'alpha_decay'", "50", "0"]),
        (["sidecar=alpha_decay", "sidecar.rule=omega"], ["rule 'omega'", "alpha_decay"]),
        (["sidecar=all", "sidecar.bounds.lr_scale=[0.5,20]"], ["channel 'lr_scale'", "0.04", "lr_max"]),
    ],
)
def test_what_cannot_work_is_one_sentence_before_training(
    orchestrate: Callable[..., int],
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    named: list[str],
) -> None:
    assert orchestrate(*small, *overrides) == 2
    said = capsys.readouterr().err
    assert names(said, *named)
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("outputs/*/*/seed=*/metrics.jsonl"))


def test_a_formula_is_played_in_a_model_of_any_shape(
    orchestrate: Callable[..., int], small: list[str], tmp_path: Path
) -> None:
    assert orchestrate(*small, "sidecar=decay_by_depth", "name=played", "launcher=debug", "model.layers=5") == 0
    (log,) = tmp_path.glob("outputs/played/*/seed=*/metrics.jsonl")
    decided = [record["sidecar"] for record in map(json.loads, log.read_text().splitlines()) if "sidecar" in record]
    assert [decision["step"] for decision in decided] == [0]
    values = decided[0]["values"]["decay"]
    down = [values[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(5)]
    assert down == pytest.approx([math.exp(0.5 - 0.25 * i) for i in range(5)])
    assert values["model.embed_tokens.weight"] == 1.0
