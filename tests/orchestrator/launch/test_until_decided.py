"""Seeds until decided: the looks, the seeds that follow, and what ends them; on a launcher and in a queue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.analysis.comparison import compute
from orchestrator.common.errors import UserError
from orchestrator.config.compose import compose
from orchestrator.config.schema import DomainConfig, Source
from orchestrator.experiments.experiment import Experiment, experiment_of
from orchestrator.experiments.run_directory import reopen
from orchestrator.launch import finalize, until_decided
from tests.naming import names, naming
from tests.orchestrator.analysis.conftest import experiment

__all__ = ["experiment"]

Write = Callable[..., Path]


def auto(root: Path, **decide: Any) -> Experiment:
    """The experiment in `root`, as `seeds: auto` would have launched it."""
    path = root / "experiment.yaml"
    written = yaml.safe_load(path.read_text())
    history = [{"since": "2026-01-01", "seeds": written["seeds"], "contrasts": {}, "expect": {}}]
    spec = {"declared": ["width"], "code": [], "history": history} | written
    spec |= {"decide": {"auto": True, **decide}}
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return reopen(root)


def looked(root: Path, **decide: Any) -> tuple[Experiment | None, str]:
    return until_decided.next_pairs(auto(root, **decide), compute(root))


def recorded(root: Path) -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((root / "experiment.yaml").read_text())
    return spec


def apart(by: float, scatter: float = 0.01) -> Callable[..., float]:
    return lambda arm, seed, *_: 3.0 + 0.01 * seed + (arm == "variable") * (by + scatter * (seed % 3 - 1))


@pytest.mark.usefixtures("hydra")
def test_the_word_is_a_number_of_seeds_and_grows_with_the_directory(tmp_path: Path) -> None:
    words = ["+experiment=width_ablation", "seeds=auto", "decide.min=3", "decide.max=9", f"root={tmp_path}"]
    experiment = experiment_of(words, compose)
    assert (experiment.auto, experiment.config.seeds, len(experiment.cells)) == (True, [0, 1, 2], 6)
    (experiment.directory).mkdir(parents=True)
    (experiment.directory / "experiment.yaml").write_text("seeds: [0, 1, 2, 3, 4]\n")
    assert experiment_of(words, compose).config.seeds == [0, 1, 2, 3, 4]
    for broken in ("seeds: [0", "- 1\n"):
        (experiment.directory / "experiment.yaml").write_text(broken)
        with pytest.raises(UserError, match=naming(experiment.directory / "experiment.yaml")):
            experiment_of(words, compose)
    (experiment.directory / "experiment.yaml").unlink()
    assert not experiment_of([*words, "seeds=[7]"], compose).auto


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["+experiment=width_ablation", "seeds=seven"], "seeds"),
        (["seeds=auto"], "seeds"),
        (["+experiment=width_ablation", "seeds=auto", "decide.min=9", "decide.max=8"], "decide.max"),
        (["+experiment=width_ablation", "decide.margin=1.5"], "decide.margin"),
        (["+experiment=width_ablation", "decide.step=0"], "decide.step"),
    ],
)
@pytest.mark.usefixtures("hydra")
def test_what_cannot_be_decided_is_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(UserError, match=key):
        experiment_of(overrides, compose)


def test_a_clear_difference_ends_it_and_the_look_is_recorded(experiment: Write) -> None:
    root = experiment(seeds=range(7), loss=apart(-0.2))
    grown, reason = looked(root, max=7)
    assert grown is None
    assert names(reason, "Decided", "7 pairs")
    (look,) = recorded(root)["looks"]
    assert (look["most"], look["seeds"]) == (7, {"variable": list(range(7))})
    looked(root, max=7)
    assert len(recorded(root)["looks"]) == 1, "the same look again is no second one"


def test_the_first_of_several_looks_may_not_spend_the_whole_error(experiment: Write) -> None:
    """Six pairs that all point one way decide where six are all, and not where twelve may come."""
    root = experiment(seeds=range(6), loss=apart(-0.2))
    auto(root, max=12)
    (result,) = (r for r in compute(root).statistics if (r.metric, r.domain) == ("test_loss", "mean"))
    assert (result.p, result.verdict) == (pytest.approx(2 * 2 / 64), "inconclusive")
    grown, _ = looked(root, max=12)
    assert grown is not None
    auto(root, max=6)
    assert looked(root, max=6)[0] is None


def test_an_open_question_gets_the_next_seeds_of_every_arm(experiment: Write) -> None:
    root = experiment(seeds=(0, 1, 2, 4, 5, 6), loss=apart(-0.02, scatter=0.02))
    grown, reason = looked(root, max=12, step=2)
    assert grown is not None
    assert names(reason, "6 pairs", "3, 7")
    assert grown.config.seeds == [0, 1, 2, 4, 5, 6, 3, 7]
    assert {cell.id for cell in grown.cells} >= {"uniform/seed=3", "variable/seed=7"}
    assert (root / "variable/seed=3/config.yaml").is_file()
    spec = recorded(root)
    assert spec["seeds"] == list(range(8))
    assert spec["history"][-1]["seeds"] == list(range(8))
    again = reopen(root)
    assert again.auto
    assert len(again.cells) == 16


@pytest.mark.parametrize(("most", "scatter", "words"), [(6, 0.02, "decide.max than 6"), (12, 2.0, "decide.max=12")])
def test_what_is_not_decided_in_time_says_so(experiment: Write, most: int, scatter: float, words: str) -> None:
    root = experiment(seeds=range(6), loss=apart(-0.01, scatter=scatter))
    grown, reason = looked(root, max=most)
    assert grown is None
    assert names(reason, "Not decided", words)
    assert len(list(root.glob("variable/seed=*"))) == 6


def test_an_arm_without_a_complete_pair_is_not_decided(experiment: Write) -> None:
    def loss(arm: str, seed: int, *_: object) -> float:
        return 3.0 + 0.01 * seed - 0.2 * (arm == "variable")

    root = experiment(seeds=range(7), arms=("uniform", "variable", "late"), loss=loss)
    for cell in root.glob("late/seed=*"):
        (cell / "metrics.jsonl").unlink()
    grown, reason = looked(root, max=8)
    assert compute(root).primary["variable"].verdict == "better"
    assert grown is not None
    assert names(reason, "Not decided with 0 to 7 pairs", "seed 7")
    assert (root / "late/seed=7/config.yaml").exists()


def named(whole: Experiment, *arms: str, **launcher: Any) -> Experiment:
    """The experiment as a launch that names these arms has it."""
    config = replace(whole.config, launcher=replace(whole.config.launcher, **launcher))
    cells = [replace(cell, config=replace(cell.config, launcher=config.launcher)) for cell in whole.cells]
    return replace(whole, config=config, cells=tuple(cell for cell in cells if cell.config.arm in arms))


def test_an_arm_that_a_launch_does_not_name_gets_the_seeds_too(experiment: Write) -> None:
    root = experiment(seeds=range(6), arms=("uniform", "variable", "late"), loss=apart(-0.02, scatter=0.02))
    path = root / "uniform/seed=0/config.yaml"
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"train": written["train"] | {"keep_at": [7]}}))
    whole = finalize._with_all_arms(named(auto(root, max=12), "uniform", "variable", parallel=3))
    assert [cell.id for cell in whole.cells] == [cell.id for cell in reopen(root).cells]
    assert {cell.config.launcher.parallel for cell in whole.cells} == {whole.config.launcher.parallel} == {3}
    assert whole.arms["uniform"].train.keep_at == [7], "which a branch of an arm that is not named begins from"
    grown, _ = until_decided.next_pairs(whole, compute(root))
    assert grown is not None
    assert {cell.id for cell in grown.cells} >= {f"{arm}/seed=6" for arm in ("uniform", "variable", "late")}


def test_an_arm_that_lacks_seeds_is_trained_at_them_before_a_look(experiment: Write) -> None:
    root = experiment(seeds=range(3), arms=("uniform", "variable", "late"), loss=apart(-0.2))
    shutil.rmtree(root / "late/seed=2")
    _, grown, reason = finalize._compare(auto(root, max=12), more=True)
    assert grown is not None
    assert names(reason, "late/seed=2 first")
    assert len(grown.cells) == 9
    assert (root / "late/seed=2/config.yaml").exists()
    assert (grown.config.seeds, recorded(root)["seeds"]) == ([0, 1, 2], [0, 1, 2])
    assert "looks" not in recorded(root)


def test_the_sentences_count_complete_pairs(experiment: Write) -> None:
    root = experiment(seeds=range(8), loss=apart(-0.2))
    (root / "variable/seed=3/metrics.jsonl").unlink()
    assert names(looked(root, max=8)[1], "Decided with 7 pairs")


def test_seeds_that_would_end_at_their_start_are_not_added(experiment: Write) -> None:
    root = experiment(seeds=range(6), loss=apart(-0.02, scatter=0.02))
    opened = auto(root, max=12)
    gone = replace(opened.config.data, domains={"code": DomainConfig(Source.files, path=str(root / "gone.txt"))})
    cells = tuple(replace(cell, config=replace(cell.config, data=gone)) for cell in opened.cells)
    grown, reason = until_decided.next_pairs(replace(opened, cells=cells), compute(root))
    assert grown is None
    assert names(reason, "Not decided with 6 pairs", "seed 6 cannot follow", "gone.txt")
    assert not list(root.glob("*/seed=6"))
    assert recorded(root)["seeds"] == list(range(6))


def test_a_list_of_seeds_is_left_as_it_is(experiment: Write) -> None:
    root = experiment(seeds=range(6), loss=apart(-0.2))
    assert until_decided.next_pairs(replace(auto(root), auto=False), compute(root)) == (None, "")
    assert "looks" not in recorded(root)
