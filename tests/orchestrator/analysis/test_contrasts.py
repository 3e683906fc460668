"""Contrasts against weighted sums written out by hand, and how many arms are told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml
from rich.console import Console

from orchestrator.analysis import compare, print_summary
from orchestrator.analysis.comparison import Comparison, compute
from orchestrator.analysis.contrasts import Contrast
from orchestrator.analysis.pairs import EQUAL_FLOPS
from orchestrator.analysis.sections import sections
from orchestrator.analysis.sections.losses import formula
from orchestrator.common.errors import UserError
from tests.naming import naming

Write = Callable[..., Path]
Edit = Callable[..., None]
SEEDS = (0, 1, 2, 3, 4, 5)
GAIN = {  # nats/token by which an arm ends lower than the baseline
    "global": 0.0, "learned": 0.2, "global_1": -0.3, "mean_matched": 0.15, "shared": 0.02, "replayed": 0.0,
    "permuted": 0.2, "random": 0.1,
}  # fmt: skip


def loss(arm: str, seed: int, step: int, domain: str) -> float:
    """Equal at step 0; then apart by the arms' gain, with a noise of each arm and seed."""
    noise = 0.01 * np.random.default_rng([seed, *arm.encode()]).standard_normal()
    gain = GAIN.get(arm, 0.0) * (1.0 + 0.1 * seed) + noise
    return 4.0 + 0.05 * seed - step / 100 * (1.0 + gain) + (domain == "facts")


def minus(a: str, *others: str) -> dict[str, dict[str, float]]:
    return {f"{a} - {b}": {a: 1, b: -1} for b in others}


def of(c: Comparison, metric: str = "test_loss") -> dict[str, Contrast]:
    return {one.contrast: one for one in c.contrasts if one.metric == metric}


def ends(root: Path, arm: str, seed: int) -> float:
    final = json.loads((root / arm / f"seed={seed}/metrics.jsonl").read_text().splitlines()[-1])
    return float(np.mean(list(final["test"].values())))


def test_a_contrast_is_the_weighted_sum_seed_by_seed(experiment: Write) -> None:
    weights = {"d": 1, "c": -1, "b": -1, "a": 1}
    root = experiment(arms=("a", "b", "c", "d"), seeds=SEEDS, loss=loss, contrasts={"interaction": weights})
    c = compare(root)
    found = of(c)["interaction"]
    by_hand = np.array([sum(w * ends(root, arm, s) for arm, w in weights.items()) for s in SEEDS])
    assert list(found.seeds) == list(SEEDS)
    assert list(found.seeds.values()) == pytest.approx(by_hand)
    assert (found.n, found.value) == (6, pytest.approx(by_hand.mean()))
    flips = scipy.stats.permutation_test((by_hand,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found.p == pytest.approx(flips.pvalue)
    means = {arm: np.mean([ends(root, arm, s) for s in SEEDS]) for arm in "bc"}
    assert found.against == pytest.approx(np.mean(list(means.values())))  # as large as one arm's loss, not as two
    table = pd.read_parquet(root / "comparison/tables/contrasts.parquet")
    assert table["value"].tolist() == pytest.approx(by_hand)
    assert set(table["contrast"]) == {"interaction"}
    (told,) = json.loads((root / "comparison/verdict.json").read_text())["contrasts"]
    assert (told["weights"], told["verdict"]) == (weights, found.verdict)
    assert "<h3>Contrasts</h3>" in (root / "comparison/report.html").read_text()


def test_two_arms_are_better_or_worse_and_more_are_a_sign(experiment: Write) -> None:
    contrasts = {
        **minus("learned", "global"), **minus("global_1", "learned"),
        "sum": {"learned": 1, "global": -0.5, "global_1": -0.5}, "other": {"global": 2, "learned": -1, "random": -1},
        **minus("global", "replayed"), "rest": {"replayed": 2, "global": -1, "shared": -1},
    }  # fmt: skip
    arms = ("global", "learned", "global_1", "random", "replayed", "shared")
    found = of(compute(experiment(arms=arms, seeds=SEEDS, loss=loss, contrasts=contrasts)))
    assert {name: one.verdict for name, one in found.items()} == {
        "learned - global": "better", "global_1 - learned": "worse", "sum": "negative", "other": "positive",
        "global - replayed": "inconclusive", "rest": "not tested",
    }  # fmt: skip


def test_a_contrast_within_the_margin_is_equivalent(experiment: Write) -> None:
    root = experiment(arms=("global", "replayed"), seeds=SEEDS, loss=loss, contrasts=minus("global", "replayed"))
    path = root / "experiment.yaml"
    path.write_text(path.read_text() + "decide: {margin: 0.02}\n")
    assert of(compute(root))["global - replayed"].verdict == "equivalent"


def test_the_sequence_ends_with_the_first_that_is_not_found(experiment: Write) -> None:
    arms = ("global", "learned", "permuted", "random")
    contrasts = minus("learned", "global", "permuted", "random")
    found = list(of(compute(experiment(arms=arms, seeds=SEEDS, loss=loss, contrasts=contrasts))).values())
    assert [one.tested for one in found] == [True, True, False]
    assert found[0].verdict == "better"
    assert found[1].p is not None
    assert found[1].p > 0.05
    assert found[2].p == pytest.approx(2 / 2**6)  # and its order is what keeps it from being called
    assert (found[2].p_adjusted, found[2].verdict) == (found[1].p, "not tested")
    first = minus("learned", "random", "global")
    found = list(of(compute(experiment(arms=arms, seeds=SEEDS, loss=loss, contrasts=first, name="x"))).values())
    assert {one.verdict for one in found} == {"better"}


def test_a_contrast_uses_the_seeds_at_which_all_of_its_arms_are_complete(experiment: Write, edit_metrics: Edit) -> None:
    contrasts = minus("c", "b") | minus("d", "b") | minus("c", "a")
    root = experiment(arms=("a", "b", "c", "d"), seeds=SEEDS, loss=loss, contrasts=contrasts)
    edit_metrics(root / "a/seed=1", lambda r: r.pop())  # the baseline's own absence takes nothing from the others
    edit_metrics(root / "c/seed=4", lambda r: r.pop())
    for seed in SEEDS:
        edit_metrics(root / f"d/seed={seed}", lambda r: r.pop())
    c = compute(root)
    found = of(c)
    assert list(found["c - b"].seeds) == [0, 1, 2, 3, 5]
    assert list(found["c - a"].seeds) == [0, 2, 3, 5]
    nothing = found["d - b"]
    assert (nothing.n, nothing.value, nothing.p, nothing.verdict) == (0, None, None, "not measured")
    assert not found["c - a"].tested  # what could not be tested was not found either
    assert "not measured" in printed(c)


def test_what_could_not_be_tested_ends_the_sequence_at_equal_flops_too(experiment: Write, edit_metrics: Edit) -> None:
    contrasts = minus("d", "a") | minus("b", "a")
    root = experiment(arms=("a", "b", "d"), seeds=SEEDS, loss=loss, contrasts=contrasts, sidecar=True)
    for seed in SEEDS:
        edit_metrics(root / f"d/seed={seed}", lambda r: r.pop())
    for metric in ("test_loss", EQUAL_FLOPS):
        found = of(compute(root), metric)
        assert found["d - a"].verdict == "not measured"
        assert not found["b - a"].tested
    assert found["b - a"].p == 2 / 2 ** len(SEEDS)  # it would have been called


def test_cells_without_a_baseline_are_held_against_each_other(experiment: Write, edit_metrics: Edit) -> None:
    root = experiment(arms=("a", "b", "c"), contrasts=minus("c", "b"))
    edit_metrics(root / "a/seed=1", lambda r: r.pop())
    edit_metrics(root / "c/seed=1", lambda r: [x.update(digest="other") for x in r if x["step"]])
    with pytest.raises(UserError, match=naming("c/seed=1", "b/seed=1", "batches", "step 50")):
        compute(root)


def test_at_equal_flops_every_run_is_read_where_the_cheapest_ends(experiment: Write) -> None:
    weights = {"d": 1, "c": -1, "b": -1, "a": 1}
    contrasts = {"interaction": weights} | minus("c", "b")
    root = experiment(arms=("a", "b", "c", "d"), seeds=SEEDS, loss=loss, contrasts=contrasts, sidecar=True)
    found = of(compute(root), EQUAL_FLOPS)
    assert set(found) == {"interaction"}  # b and c both have a sidecar
    end = 100 - 4 * 50 / (50 + 4 / 3)  # 3 decisions of 4/3 steps each, the first of them before step 0
    by_hand = np.zeros(len(SEEDS))
    for arm, weight in weights.items():
        curves = [[np.mean([loss(arm, seed, at, d) for d in ("code", "facts")]) for at in (50, 100)] for seed in SEEDS]
        by_hand += weight * np.array([np.interp(100 if arm == "a" else end, (50, 100), curve) for curve in curves])
    assert list(found["interaction"].seeds.values()) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("contrasts", "named"),
    [
        ({"x": {"a": 1, "d": -1}}, ["contrasts: 'x'", "'d'", "not an arm"]),
        ({"x": {"a": 1, "b": 1}}, ["'x'", "sum to 2"]),
        ({"x": 3}, ["'x'", "3", "two arms"]),
        ("x", ["contrasts = 'x'", "mapping"]),
    ],
)
def test_a_contrast_that_was_written_into_the_record_is_checked_too(
    experiment: Write, contrasts: Any, named: list[str]
) -> None:
    root = experiment(arms=("a", "b"))
    path = root / "experiment.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"contrasts": contrasts}, sort_keys=False))
    with pytest.raises(UserError, match=naming(*named)) as caught:
        compute(root)
    assert str(caught.value).startswith(str(path))


def printed(c: Comparison, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    print_summary(c, console)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    return text


def test_many_arms_are_a_line_each_and_the_report_has_the_rest(experiment: Write, edit_metrics: Edit) -> None:
    arms = ("global", "learned", "mean_matched", "shared", "permuted", "random")
    contrasts = minus("learned", "global", "mean_matched", "permuted", "random")
    root = experiment(arms=arms, seeds=SEEDS, loss=loss, contrasts=contrasts, sidecar=True)
    for seed in SEEDS:
        edit_metrics(root / f"shared/seed={seed}", lambda r: r.pop())
    c = compare(root)
    text = printed(c)
    assert len(text.splitlines()) < 60
    lines = {line.split()[0]: line for line in text.split("Contrasts")[0].splitlines() if line.strip()}
    assert lines["learned"].rstrip().endswith("6  0.031  0.125  inconclusive")  # of the four arms that finished
    assert lines["global"].rstrip().endswith("baseline")
    assert lines["shared"].rstrip().endswith("not measured")
    assert lines["permuted"].split()[1] == f"{np.mean([ends(root, 'permuted', s) for s in SEEDS]):.4f}"
    assert "learned - mean_matched" in text
    assert "(0.031)  not tested" in text
    assert "Layers at" not in text
    titles = [section.title.split(",")[0].split(":")[0] for section in sections(c)]
    assert titles[1:4] == ["Contrasts", "Symmetry", "Test loss"]
    assert sum(title.startswith("Layers at") for title in titles) == 4


def test_few_arms_are_told_in_full_below_their_contrasts(experiment: Write) -> None:
    weights = {"variable_learned": 1, "uniform_learned": -1, "variable": -1, "uniform": 1}
    arms = ("uniform", "variable", "uniform_learned", "variable_learned")
    text = printed(compute(experiment(arms=arms, contrasts={"interaction": weights})))
    told = " ".join(text.split())
    assert "interaction = variable_learned + uniform − uniform_learned − variable." in told
    assert "in this order" not in told
    assert text.index("Contrasts") < text.index("(a = uniform") < text.index("Layers at")


def test_formulas() -> None:
    assert formula({"b": -0.5, "a": 1, "c": -0.5}) == "a − 0.5 b − 0.5 c"
    assert formula({"a": -2, "b": 2}) == "2 b − 2 a"
