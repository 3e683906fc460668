"""A whole search, as its command runs it: what is trained, what goes on, what is compared, and at which seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator.analysis import compare
from orchestrator.config.schema import SidecarConfig
from orchestrator.experiments import effects, trials
from orchestrator.storage import metrics_log
from tests.naming import names

Run = Callable[..., int]
SEARCH = ("++search.space={optim.lr: 'log(5e-4, 2e-2)'}", "search.trials=4", "search.batch=2", "name=lrs", "seeds=[0]")


@pytest.fixture
def search(small: list[str]) -> list[str]:
    return [*small, "launcher=debug", *SEARCH]


def cells_in(directory: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(directory)) for path in directory.glob("*/seed=*/metrics.jsonl"))


def test_the_best_setting_is_compared_at_seeds_that_no_trial_had(
    search: list[str], orchestrate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestrate(*search) == 0
    root = tmp_path / "outputs/lrs"
    found = {one.name: one for one in trials.read(root)}
    assert [*found] == ["baseline", "trial_0", "trial_1", "trial_2", "trial_3"]
    # successive halving: four for 3 steps, two for 6, one for 12; the best of each length goes on
    by_length = {steps: [one for one in found.values() if steps in one.losses and one.settings] for steps in (3, 6, 12)}
    assert [len([o for o in some if o.name != "baseline"]) for some in by_length.values()] == [4, 2, 1]
    for short, long in ((3, 6), (6, 12)):
        ranked = sorted((one.losses[short], one.name) for one in by_length[short] if one.name != "baseline")
        went_on = {one.name for one in by_length[long]} - {"baseline"}
        assert went_on == {name for _, name in ranked[: len(went_on)]}
    # a loss is the last validation loss of its cell, the mean over domains
    (best,) = [one for one in found.values() if one.chosen]
    record = metrics_log.read(root / f"search/12_steps/{best.name}/seed=1000000/metrics.jsonl")[-1]
    assert best.losses[12] == pytest.approx(sum(record["heldout"].values()) / len(record["heldout"]))
    assert cells_in(root) == ["baseline/seed=0", f"{best.name}/seed=0"]
    recorded = yaml.safe_load((root / "experiment.yaml").read_text())
    assert recorded["arms"] == {"baseline": [], best.name: best.overrides}
    assert recorded["declared"] == ["optim.lr"]
    assert recorded["seeds"] == [0]
    assert best.name in capsys.readouterr().out
    # what the verdict cost counts the search
    c = compare(root)
    assert c.experiment.trials == list(found.values())
    assert json.loads((root / "comparison/verdict.json").read_text())["trials"][0]["name"] == "baseline"
    # the same command trains nothing again
    logs = {path: path.read_bytes() for path in root.rglob("metrics.jsonl")}
    assert len(logs) == 2 + (4 + 2 + 1) + 3
    assert orchestrate(*search) == 0
    assert {path: path.read_bytes() for path in root.rglob("metrics.jsonl")} == logs


def test_a_longer_run_begins_at_the_end_of_the_shorter_where_the_schedule_allows_it(
    search: list[str], orchestrate: Run, tmp_path: Path
) -> None:
    few = ("search.trials=2", "search.lengths=[0.5,1.0]")
    assert orchestrate(*search, *few, "optim.schedule=constant", "optim.warmup_steps=2") == 0
    root = tmp_path / "outputs/lrs/search"
    (best,) = [one for one in trials.read(root.parent) if one.chosen]
    config = yaml.safe_load((root / f"12_steps/{best.name}/seed=1000000/config.yaml").read_text())
    assert config["branch"] == {"arm": best.name, "step": 6, "experiment": str(root / "6_steps")}
    whole = ["optim.schedule=constant", "optim.warmup_steps=2", *best.overrides, "seeds=[1000000]", "name=whole"]
    ONCE = ["train.eval_every=12", "train.checkpoint_every=12", "forensics.every=12"]
    alone = [word for word in search if "search" not in word and word not in SEARCH]
    assert orchestrate(*alone, *whole, *ONCE) == 0
    digests = [
        metrics_log.read(path / "metrics.jsonl")[-1]["digest"]
        for path in (root / f"12_steps/{best.name}/seed=1000000", tmp_path / "outputs/whole/main/seed=1000000")
    ]
    assert digests[0] == digests[1]


def test_a_trial_that_cannot_be_trained_is_a_failed_trial(search: list[str], orchestrate: Run, tmp_path: Path) -> None:
    # lr × weight_decay of 0.1 and more is refused: the ends of both ranges compose alone, some pairs do not
    space = "++search.space={optim.lr: 'log(1e-3, 9e-1)', optim.weight_decay: 'log(0.1, 10)'}"
    assert (
        orchestrate(
            *[word for word in search if "space" not in word], space, "search.trials=8", "search.lengths=[0.25]"
        )
        == 0
    )
    found = trials.read(tmp_path / "outputs/lrs")
    failed = [one for one in found if one.failed]
    assert failed
    assert all("weight_decay" in one.failed and not one.losses for one in failed)
    assert len(failed) < 8


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["++search.space={optim.lr: 'log(1e-2, 1e-4)'}"], "optim.lr"),
        (["++search.space={optim.learning: 'log(1e-4, 1e-2)'}"], "optim.learning"),
        (["++search.space={optim.lr: 'log(1e8, 1e9)'}"], "optim.lr"),
        (["++search.space={width: [uniform, rump]}"], "rump"),
        (["search.trials=1"], "search.trials"),
        (["search.finalists=4"], "search.finalists"),
        (["search.lengths=[0.5,0.25]"], "search.lengths"),
        (["search.lengths=[]"], "search.lengths"),
        (["search.lengths=[0.5,1.5]"], "search.lengths"),
        (["search.keep=0"], "search.keep"),
        (["search.seed=0"], "search.seed"),
        (["search.seed=5", "seeds=auto"], "search.seed"),
        (["++search.space={data.heldout_tokens: [512, 1024]}"], "data.heldout_tokens"),
        (["++search.space={model.layers: 'uniform(2, 4)'}"], "int("),
        (["++arms={a: [], b: [optim.lr=1]}"], "arms"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_anything_is_written(
    search: list[str], orchestrate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], key: str
) -> None:
    assert orchestrate(*search, *words) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / "outputs/lrs").exists()


def test_the_plan_says_what_is_explored_and_writes_nothing(
    search: list[str], orchestrate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestrate(*search, "dry_run=true") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 for 3 steps, 2 for 6 steps, 1 for 12 steps" in said
    assert "4.8 cells of the baseline" in said  # (5 × 3 + 3 × 6 + 2 × 12) / 12
    assert not (tmp_path / "outputs/lrs").exists()


def test_equal_settings_are_trained_once_and_the_baseline_is_no_finalist(
    small: list[str], orchestrate: Run, tmp_path: Path
) -> None:
    space = ("++search.space={model.layers: [2, 3]}", "search.trials=5", "search.batch=1", "search.lengths=[1.0]")
    assert orchestrate(*small, "launcher=debug", *space, "name=lrs", "seeds=[0]") == 0  # the baseline has 3 layers
    found = trials.read(tmp_path / "outputs/lrs")
    assert [one.settings["model.layers"] for one in found] == ["3", "2"]
    assert cells_in(tmp_path / "outputs/lrs/search/12_steps") == [
        "baseline/seed=1000000", f"{found[1].name}/seed=1000000",
    ]  # fmt: skip
    assert found[1].chosen


def test_a_directory_of_another_experiment_is_refused_before_anything_is_trained(
    search: list[str], orchestrate: Run, tmp_path: Path
) -> None:
    plain = [word for word in search if "search" not in word]
    assert orchestrate(*plain) == 0
    before = sorted((tmp_path / "outputs/lrs").rglob("*"))
    assert orchestrate(*search) == 2
    assert sorted((tmp_path / "outputs/lrs").rglob("*")) == before


def test_a_trial_that_failed_stays_so_and_the_search_goes_on(
    search: list[str], orchestrate: Run, tmp_path: Path
) -> None:
    assert orchestrate(*search, "search.lengths=[1.0]", "search.trials=2") == 0
    root = tmp_path / "outputs/lrs/search/12_steps"
    (best,) = [one for one in trials.read(root.parents[1]) if one.chosen]
    events = root / "events.jsonl"
    last = json.loads(events.read_text().splitlines()[-1])
    fault = {"cell": f"{best.name}/seed=1000000", "state": "failed", "reason": "out of memory", "attempt": 9}
    events.write_text(events.read_text() + json.dumps(last | fault) + "\n")
    begun = events.read_text()
    assert orchestrate(*search, "search.lengths=[1.0]", "search.trials=2") == 0  # another one wins
    assert events.read_text() == begun, "nothing was tried again"
    found = {one.name: one for one in trials.read(root.parents[1])}
    assert found[best.name].failed == "out of memory"
    assert not found[best.name].chosen


def test_a_formula_is_learned_over_whole_runs_and_written_as_a_choice_of_sidecar(
    small: list[str], orchestrate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*small, "launcher=debug", "seeds=[0]", "train.steps=6", "forensics.every=6"]
    formula = ["sidecar=decay_by_depth", "sidecar.coefficients.decay.depth=0", "++sidecar.coefficients.decay.time=0"]
    space = "++search.space={sidecar.coefficients.decay.depth: 'uniform(-2, 2)'}"  # exp(2) · lr · λ lies below 0.1
    learn = [
        "search.method=reinforce",
        "search.sigma=1",
        "search.trials=15",
        "search.batch=2",
        "search.lengths=[1.0]",
        "name=formula",
    ]
    assert orchestrate(*own, *formula, space, *learn) == 0
    root = tmp_path / "outputs/formula"
    found = {one.name: one for one in trials.read(root)}
    assert "trial_8" not in found  # the centre of the line is the baseline
    (best,) = [one for one in found.values() if one.chosen]
    assert {len(one.settings) for one in found.values()} == {1}
    # what it learned is what the compared arm played
    learned = yaml.safe_load((root / "search/learned.yaml").read_text())
    assert learned["coefficients"]["decay"]["time"] == 0
    assert learned["coefficients"]["decay"]["depth"] == float(best.settings["sidecar.coefficients.decay.depth"])
    played = yaml.safe_load((root / f"{best.name}/seed=0/config.yaml").read_text())["sidecar"]
    assert {key: played[key] for key in learned} == learned
    assert SidecarConfig(**learned) == SidecarConfig(**played)
    # the effect is the mean difference between the two levels
    (effect,) = effects.read(root)
    high, low = (found[name].losses[6] for name in ("trial_0", "trial_1"))
    assert (effect.low, effect.high) == (-2.0, 2.0)
    assert abs(effect.effect) == pytest.approx(abs(high - low))
    said = capsys.readouterr().out
    assert names(said, effect.key)
    assert "learned.yaml" in said
    assert "Effects of the explored keys" in (root / "comparison/report.html").read_text()
