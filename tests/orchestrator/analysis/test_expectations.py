"""Lines of `expect` against readings written by hand, and how often a line that holds by chance is called."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml

from orchestrator.analysis import compare
from orchestrator.analysis.cells import CellResult, ExperimentResult, read_experiment
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.expectations import Expectation, expectations
from orchestrator.analysis.sections.expectations import verdicts
from orchestrator.analysis.statistics import (
    interval,
)
from orchestrator.common.errors import UserError
from orchestrator.experiments.decision import FEWEST_PAIRS
from orchestrator.experiments.expectations import intended
from orchestrator.forensics.reading import Reading
from tests.naming import names, naming
from tests.orchestrator.reading import reading_of

Write = Callable[..., Path]
Readings = dict[int, Reading]


def body_of(*roles: str, budget: Sequence[float | None] = ()) -> Reading:
    counts = budget or [1.0] * len(roles)
    return reading_of(roles, [{"saturated_robust": n} for n in counts])


def counted(n: float | None) -> Reading:
    """A body whose budget is `n`."""
    return body_of("hub", budget=[n])


def cell(arm: str, seed: int, readings: Readings, missing: str | None = None) -> CellResult:
    return CellResult(arm, seed, Path(), [], readings, missing)


def judged(expect: dict[str, Any], *cells: CellResult) -> list[Expectation]:
    arms = list(dict.fromkeys(c.arm for c in cells))
    experiment = ExperimentResult(
        path=Path(), name="x", question="", arms=arms, seeds=list(dict.fromkeys(c.seed for c in cells)),
        cells=list(cells), expect=intended(expect, arms),
    )  # fmt: skip
    return expectations(experiment)


def budgets(wanted: Any, values: Sequence[float | None]) -> Expectation:
    """The line `budget` in one arm, one seed per value."""
    (found,) = judged({"budget": wanted}, *(cell("a", seed, {9: counted(v)}) for seed, v in enumerate(values)))
    return found


def test_a_line_is_told_with_its_figures() -> None:
    values = [8.0, 9.0, 10.0, 11.0, 13.0, 9.0]
    cells = [cell("b", s, {0: counted(4.0 + s), 50: counted(99.0), 100: counted(v)}) for s, v in enumerate(values)]
    cells.insert(0, cell("a", 0, {50: counted(1.0), 100: counted(6.0)}))
    (found,) = judged({"b": {"budget": "> 5"}}, *cells)
    assert (found.arm, found.line, found.role, found.thresholds) == ("b", "budget", None, [5.0])
    assert (found.step, found.n, found.holding) == (100, 6, 6)
    assert found.values == dict(enumerate(values))
    within = interval(values, 0.95)
    assert (found.mean, found.low, found.high) == (pytest.approx(np.mean(values)), within.low, within.high)
    assert found.p == pytest.approx(2 * 0.5**6)
    assert (found.untrained, found.baseline) == (6.5, 6.0)
    assert found.verdict == "delivered"
    assert "before training" in found.sentence


@pytest.mark.parametrize(
    ("wanted", "values", "verdict"),
    [
        ("> 5", [6, 7, 6, 7, 6, 7], "delivered"),
        ("> 5", [6, 7, 6, 7, 6], "inconclusive"),  # five seeds decide nothing
        ("> 5", [6] * 6, "delivered"),  # without any spread the test decides
        ("> 5", [5] * 6, "not delivered"),
        (">= 5", [5] * 6, "delivered"),
        ("> 5", [6, 7, 6, 7, 6, 5], "inconclusive"),
        ("> 5", [5.01, 90, 80, 5.02, 5.03, 60], "inconclusive"),  # all above, but the mean is not known well
        ("> 5", [4, 3, 4, 3, 4, 3], "not delivered"),
        ("< 5", [4, 3, 4, 3, 4, 3], "delivered"),
        ([5, 8], [6, 7, 6, 7, 6, 7], "delivered"),
        ([5, 8], [9, 9, 9.5, 9, 9, 9], "not delivered"),
        ([5, 8], [2, 3, 2, 3, 2, 3], "not delivered"),
        ([5, 8], [2, 11, 2, 11, 2, 11, 2, 11], "inconclusive"),  # no seed inside, but the mean may be
        ([5, 8], [7, 8.5, 7, 7, 7, 7], "inconclusive"),
        ("> 5", [9], "inconclusive"),
    ],
)
def test_the_rule(wanted: Any, values: list[float], verdict: str) -> None:
    found = budgets(wanted, values)
    assert found.verdict == verdict
    assert names(found.sentence, "sign test", "6") == (len(values) < 6)


def test_a_role_is_the_share_of_its_layers() -> None:
    roles = ("hub", "passthrough", "specialist", "specialist", "hub/specialist", "specialist")
    cells = [cell("a", seed, {9: body_of(*roles)}) for seed in range(6)]
    late, last, early = judged({"late": "specialist <= 0.5", "last": "specialist", "early": "specialist"}, *cells)
    assert [(e.mean, e.holding, e.verdict) for e in (late, last, early)] == [
        (0.5, 6, "delivered"), (1.0, 6, "delivered"), (0.0, 0, "not delivered"),
    ]  # fmt: skip
    assert (last.wanted, last.thresholds) == ("a: last specialist > 0.5", [0.5])


def test_an_interval_ends_where_the_number_does() -> None:
    bodies = [body_of("hub", "hub", budget=[1.0, n]) for n in (2.0, 90.0, 80.0, 99.0, 70.0, 85.0)]
    (found,) = judged({"centre": [0.5, 1.0]}, *(cell("a", s, {9: body}) for s, body in enumerate(bodies)))
    assert found.high == 1.0
    assert found.verdict == "delivered"


def test_the_newest_reading_of_any_complete_cell() -> None:
    cells = [cell("a", s, {0: counted(0.0), 50: counted(7.0), **({99: counted(1.0)} if s else {})}) for s in range(5)]
    (found,) = judged({"budget": "> 5"}, *cells, cell("a", 5, {0: counted(9.0)}, "failed at step 3"))
    assert (found.step, found.values, found.verdict) == (99, {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}, "inconclusive")
    assert names(found.sentence, "step 99: 0")


def test_layers_read_before_training_only_are_not_measured(experiment: Write) -> None:
    root = expecting(experiment(seeds=range(6), read_at=(0,)), {"variable": {"budget": "> 5"}})
    (found,) = compute(root).expectations
    assert (found.step, found.n, found.mean, found.verdict) == (0, 0, None, "not measured")
    assert names(found.sentence, "before training", "step 0 of 100")
    (found,) = compute(expecting(experiment(seeds=range(6), steps=(0,), name="x"), {"budget": "> 5"})).expectations[1:]
    assert (found.step, found.verdict) == (0, "delivered")  # such are these runs: nothing was to be trained


def test_what_was_read_early_says_so(experiment: Write) -> None:
    root = expecting(experiment(seeds=range(6), read_at=(0, 50)), {"budget": "> 5"})
    c = compute(root)
    assert {e.verdict for e in c.expectations} == {"delivered"}
    assert all("step 50 of 100" in e.sentence for e in c.expectations)
    section = verdicts(c)
    assert section.title.endswith("at step 50")
    assert any("tested alone" in note for note in section.notes)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([cell("a", 0, {9: counted(1.0)}, "never started")], "No cell"),
        ([cell("a", 0, {}), cell("a", 1, {})], "seeds 0, 1"),
        ([cell("a", 0, {9: counted(None)})], "No reading"),
    ],
    ids=["incomplete", "unread", "no measure"],
)
def test_what_was_not_measured_says_why(cells: list[CellResult], words: str) -> None:
    (found,) = judged({"budget": "> 5"}, *cells)
    assert (found.verdict, found.n, found.mean, found.low, found.p) == ("not measured", 0, None, None, None)
    assert words in found.sentence


def test_a_seed_without_the_number_is_not_passed_over() -> None:
    found = budgets("> 5", [9.0, 9.0, None, 9.0, 9.0, 9.0, 9.0])
    assert (found.n, found.holding, found.verdict) == (6, 6, "inconclusive")
    assert "without this number: 2" in found.sentence


def test_a_region_beyond_the_body_is_not_measured() -> None:
    (found,) = judged({"L7": "hub"}, cell("a", 0, {9: body_of("hub", "hub")}))
    assert found.verdict == "not measured"


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("n", [5, 6, 8, 11])
def test_a_layer_that_has_its_role_in_half_of_the_runs_is_seldom_called(n: int, at: float) -> None:
    """All outcomes of a line whose truth is even odds, by their probability: each error stays under 5 %."""
    called = dict.fromkeys(("delivered", "not delivered"), 0.0)
    for k in range(n + 1):
        cells = [cell("a", s, {9: body_of("damper" if s < k else "hub")}) for s in range(n)]
        (found,) = judged({"last": f"damper > {at}"}, *cells)
        if found.verdict in called:
            called[found.verdict] += scipy.stats.binom.pmf(k, n, 0.5)
    assert all(share <= 0.05 for share in called.values())
    if at == 0.5 and n >= FEWEST_PAIRS:
        assert min(called.values()) > 0.0


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(50.0, 5.0, 5),
        lambda rng: 50.0 + rng.exponential(9.0, 5) - 9.0 * np.log(2.0),
        lambda rng: 50.0 - (rng.exponential(9.0, 5) - 9.0 * np.log(2.0)),
        lambda rng: 50.0 + rng.standard_t(1.5, 5),
    ],
    ids=["normal", "skewed up", "skewed down", "heavy tails"],
)
def test_a_number_at_its_threshold_is_seldom_called(draw: Callable[[np.random.Generator], np.ndarray]) -> None:
    rng, runs = np.random.default_rng(0), 1500
    verdicts = [budgets("> 50", draw(rng).clip(min=0.0).tolist()).verdict for _ in range(runs)]
    for verdict in ("delivered", "not delivered"):
        assert verdicts.count(verdict) / runs <= 0.05 + 3.0 * np.sqrt(0.05 * 0.95 / runs)


def test_fewer_seeds_than_any_other_verdict_needs_deliver_nothing() -> None:
    assert budgets("> 5", [9.0] * FEWEST_PAIRS).verdict == "delivered"
    few = budgets("> 5", [9.0] * (FEWEST_PAIRS - 1))
    assert few.verdict == "inconclusive"
    assert f"needs {FEWEST_PAIRS}" in few.sentence


def expecting(root: Path, expect: Any) -> Path:
    path = root / "experiment.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"expect": expect}, sort_keys=False))
    return root


def test_the_verdict_and_the_report_have_every_line(experiment: Write) -> None:
    lines = {"uniform": {"L3": ["hub", "specialist"]}, "variable": {"centre": "> 0.7", "budget": "> 40"}}
    root = expecting(experiment(seeds=range(6)), lines)
    c = compare(root)
    told = json.loads((root / "comparison/verdict.json").read_text())["expectations"]
    assert [e["wanted"] for e in told] == [
        "uniform: L3 hub > 0.5", "uniform: L3 specialist > 0.5", "variable: centre > 0.7", "variable: budget > 40",
    ]  # fmt: skip
    # the readings' roles turn by one layer every fifty steps: at step 100 the fourth layer is a hub in every seed
    assert [e["verdict"] for e in told] == ["delivered", "not delivered", "not delivered", "inconclusive"]
    assert told[0]["values"] == {str(seed): 1.0 for seed in range(6)}
    page = (root / "comparison/report.html").read_text()
    assert "Intended organisation" in page
    assert "variable: budget &gt; 40" in page
    assert len(c.expectations) == 4


def test_without_lines_there_is_no_section(experiment: Write) -> None:
    root = experiment()
    compare(root)
    assert json.loads((root / "comparison/verdict.json").read_text())["expectations"] == []
    assert "Intended organisation" not in (root / "comparison/report.html").read_text()


@pytest.mark.parametrize(
    ("expect", "named"),
    [
        (["late"], ["expect = ['late']"]),
        ({"uniform": {"late": "boss"}}, ["'boss'", "not a role"]),
        ({"late": {"a": 1}}, ["'late'", "not an arm"]),
    ],
)
def test_what_experiment_yaml_cannot_say_is_one_sentence(experiment: Write, expect: Any, named: list[str]) -> None:
    root = expecting(experiment(), expect)
    with pytest.raises(UserError, match=naming(root / "experiment.yaml", *named)) as caught:
        read_experiment(root)
    assert "\n" not in str(caught.value)


def test_an_arm_without_complete_cells_is_told_too(experiment: Write) -> None:
    root = expecting(experiment(), {"late": "hub"})
    for log in root.glob("variable/*/metrics.jsonl"):
        log.unlink()
    assert [e.verdict for e in compute(root).expectations] == ["inconclusive", "not measured"]
