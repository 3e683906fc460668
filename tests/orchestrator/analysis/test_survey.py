"""Many experiments on one page: each row against the experiment's own comparison, the adjustment against arithmetic."""

from __future__ import annotations

import io
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
import yaml
from rich.console import Console

from orchestrator.analysis import overview
from orchestrator.analysis.comparison import Comparison, compute
from orchestrator.analysis.survey import ArmSummary, _adjusted, sort_out, survey
from orchestrator.compare import main
from tests.naming import names

Write = Callable[..., Path]
COLUMNS = (
    "directory,experiment,question,baseline,arm,n,loss,loss_low,loss_high,data,delta,low,high,p,q,verdict,ratio,ratio_low,ratio_high,budget,"
    "centre_shift,centre_low,centre_high,centre_p,expected,delivered,definitions,problem,width.start"
)


def printed(rows: list[ArmSummary], width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    overview.print_overview(rows, [], console)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert "nan" not in text.lower()
    return text


def budget(arm: str, seed: int, step: int) -> list[float]:
    return [20.0, 20.0, 20.0, 20.0 + seed + (10.0 if arm == "variable" else 0.0)]


def expecting(root: Path, expect: dict[str, str]) -> Path:
    path = root / "experiment.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"expect": expect}, sort_keys=False))
    return root


def by_hand(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def row(p: float | None, n: int = 6, **more: object) -> ArmSummary:
    return replace(ArmSummary("outputs/x", "x", "Why?", "a", "b", n=n, p=p), **more)  # type: ignore[arg-type]


def test_a_row_is_what_the_experiment_says_by_itself(experiment: Write) -> None:
    root = expecting(experiment(seeds=range(6), budget=budget), {"budget": "> 75"})
    found, baseline = survey([root])
    c = compute(root)
    loss, spent = c.statistics[0], c.conservation[0]
    assert (found.directory, found.experiment, found.question) == (str(root), "width_ablation", "Does width decide?")
    assert (found.baseline, found.arm, found.n, found.problem) == ("uniform", "variable", 6, None)
    assert (found.loss, baseline.loss) == pytest.approx((loss.b, loss.a))
    assert (baseline.arm, baseline.verdict, baseline.n, baseline.delta) == ("uniform", "baseline", 6, None)
    for arm, own in (("variable", found), ("uniform", baseline)):
        finals = [cell.metrics[-1]["test"].values() for cell in c.experiment.cells if cell.arm == arm]
        within = scipy.stats.t.interval(0.95, 5, *by_hand([np.mean(list(final)) for final in finals]))
        assert own.loss_low is not None
        assert own.loss_high is not None
        assert own.loss_low <= within[0] + 1e-9 < within[1] - 1e-9 <= own.loss_high, "t's, or the bootstrap's beyond it"
    assert (found.delta, found.low, found.high, found.p) == (loss.delta, loss.low, loss.high, loss.p)
    assert (found.verdict, found.q) == ("better", loss.p)  # one test alone is its own adjustment
    assert (found.ratio, found.ratio_low, found.ratio_high) == (spent.ratio, spent.low, spent.high)
    assert (found.budget, found.centre_shift, found.centre_p) == (spent.verdict, spent.centre_shift, spent.centre_p)
    assert found.centre_shift is not None
    assert found.centre_shift > 0.0
    assert (found.expected, found.delivered) == (2, 2)  # of both arms


def test_every_arm_has_a_row_the_lowest_loss_first(experiment: Write) -> None:
    rows = survey([experiment(arms=("uniform", "variable", "third")), experiment(arms=("alone",), name="single")])
    assert [(r.experiment, r.arm, r.n, r.verdict) for r in rows] == [
        ("width_ablation", "variable", 2, "inconclusive"), ("single", "alone", 2, "only arm"),
        ("width_ablation", "uniform", 2, "baseline"), ("width_ablation", "third", 2, "inconclusive"),
    ]  # fmt: skip
    assert (rows[1].budget, rows[1].delta) == ("–", None)
    text = printed(rows)
    assert text.count("width_ablation") == 3
    assert "third" in text


def test_the_adjustment_is_benjamini_and_hochbergs() -> None:
    p = [0.03125, 0.04, 0.9, 0.03125, 0.5]
    rows = [row(value) for value in p] + [row(0.5, n=2), row(None, n=0)]
    found = [r.q for r in _adjusted(rows)]
    order = np.argsort(p, kind="stable")
    stepped = [p[i] * len(p) / (rank + 1) for rank, i in enumerate(order)]
    by_hand = dict(zip(order, np.minimum.accumulate(stepped[::-1])[::-1], strict=True))
    assert found[:5] == pytest.approx([by_hand[i] for i in range(5)])
    assert found[5:] == [None, None]  # two pairs cannot be called, and cost the others nothing


def test_how_many_calls_chance_would_make_is_told() -> None:
    rows = _adjusted([row(0.03125, verdict="better")] * 3 + [row(0.6, verdict="inconclusive")] * 17)
    first, *others = overview.notes([*rows, row(0.5, n=2)], [])
    assert names(first, "3 of 20 arms", "at most 0.64")
    assert "q ≤" not in first, "none is below"
    kept, *_ = overview.notes(_adjusted([row(0.001, verdict="better"), row(0.6, verdict="inconclusive")]), [])
    assert names(kept, "1 of 2 arms", "q ≤ 0.032: 1", "3.2%")
    assert any(names(note, "1 arm", "6 seed pairs") for note in others)
    assert not any("arms" in note for note in overview.notes([row(0.5, n=2)], []))


def test_readings_of_several_definitions_are_told_apart() -> None:
    rows = [row(0.5, definitions=2), row(0.5, experiment="old", definitions=1), row(0.5, experiment="unread")]
    (note,) = (note for note in overview.notes(rows, []) if "definitions" in note)
    assert names(note, "old (version 1)", "version 2")
    assert "unread" not in note
    assert not any("definitions" in note for note in overview.notes(rows[:1], []))


def test_an_experiment_of_one_arm_lacks_no_seed_pairs(experiment: Write) -> None:
    rows = survey([experiment(arms=("alone",))])
    assert not any(names(note, "1 arm") for note in overview.notes(rows, []))


def test_one_that_cannot_be_read_does_not_end_the_rest(
    experiment: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = experiment(), experiment(name="broken")
    reading = next(broken.rglob("step_00000100.json"))
    reading.write_text("{")
    assert main([str(broken), str(whole), str(tmp_path / "typo")]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert names(said, "broken:", "not JSON", "typo", "not there")
    assert "−0.1000" in said
    assert said.count("not read") == 2
    assert not (whole / "comparison").exists()  # nothing is written unless asked


def test_what_is_no_experiment_is_skipped_with_one_line(
    experiment: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment()
    experiment(name="b")
    (tmp_path / "reference").mkdir()
    (tmp_path / "notes.txt").touch()
    assert main([str(path) for path in sorted(tmp_path.iterdir())]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("skipped: ") == 1
    assert "reference" in said
    assert "notes.txt" in said
    assert main([str(tmp_path / "reference"), str(tmp_path / "notes.txt")]) == 2
    assert names(capsys.readouterr().err, "experiment.yaml", tmp_path / "reference", tmp_path / "notes.txt")


def test_each_experiment_counts_once(experiment: Write) -> None:
    root = experiment()
    assert sort_out([root, root / "../width_ablation", root]) == ([root], [])


def test_nothing_of_an_experiment_is_kept_but_its_rows(experiment: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Comparison]] = []

    def watched(path: Path) -> Comparison:
        assert all(comparison() is None for comparison in seen)
        comparison = compute(path)
        seen.append(weakref.ref(comparison))
        return comparison

    monkeypatch.setattr("orchestrator.analysis.survey.compute", watched)
    assert len(survey([experiment(name=name) for name in "abc"])) == 2 * len(seen) == 6


def test_the_csv_has_every_digit_and_the_page_links_to_the_reports(experiment: Write, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    roots = [experiment(seeds=range(6)), experiment(name="b", question=hostile)]
    csv, html = tmp_path / "all.csv", tmp_path / "all.html"
    assert main([*map(str, roots), "--csv", str(csv), "--html", str(html)]) == 0
    rows, table = survey(roots), pd.read_csv(csv, float_precision="round_trip")
    assert csv.read_text().startswith(f"{COLUMNS}\n")
    for name in ("loss", "loss_low", "delta", "low"):
        assert table[name].replace(np.nan, None).tolist() == [getattr(r, name) for r in rows]
    assert table["width.start"].tolist() == [0.9, 0.9, 1.0, 1.0]
    page = html.read_text()
    assert "−0.1000" in page
    assert "comparison/report.html" not in page  # none has been written yet
    assert hostile not in page
    assert "&lt;script&gt;" in page
    main([str(roots[1])])
    main([*map(str, roots), "--html", str(html)])
    assert f'<a href="{roots[1].name}/comparison/report.html">b</a>' in html.read_text()


def test_one_directory_with_a_file_is_a_table_of_one(experiment: Write, tmp_path: Path) -> None:
    root = experiment()
    assert main([str(root), "--csv", str(tmp_path / "one.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "one.csv")) == 2
    assert not (root / "comparison").exists()
    assert main([str(root)]) == 0
    assert json.loads((root / "comparison/verdict.json").read_text())["name"] == "width_ablation"


@pytest.mark.parametrize("option", ["--csv", "--html"])
def test_a_file_that_cannot_be_written_is_one_sentence_before_the_work(
    experiment: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main([str(experiment()), option, str(tmp_path / "nowhere/all")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert names(captured.err, tmp_path / "nowhere/all", tmp_path / "nowhere")
    assert len(captured.err.splitlines()) == 1


def test_twenty_experiments_fit_a_hundred_columns() -> None:
    question = "Does the width profile of the late layers decide where the specialists of the whole body concentrate?"
    values = {
        "loss": 2.34567, "loss_low": 2.3, "loss_high": 2.4,
        "delta": -0.01234, "low": -0.0235, "high": -0.0012, "verdict": "inconclusive", "ratio": 12.34,
        "budget": "no larger than chance", "centre_shift": -0.12, "centre_low": -0.23, "centre_high": 0.01,
        "expected": 12, "delivered": 11, "question": question,
    }  # fmt: skip
    rows = [
        row(0.04, **values | {"directory": f"outputs/{i}", "experiment": f"a_rather_long_name_of_experiment_{i}",
                              "arm": "variable_and_learned"})
        for i in range(20)
    ]  # fmt: skip
    text = printed(_adjusted(rows))
    for whole in ("2.3457", "2.3000 … 2.4000", "−0.0123", "−0.0235 … −0.0012", "inconclusive", "12.34"):
        assert text.count(whole) == 20, whole
    assert len(text.splitlines()) < 20 * 3 + 15
    assert names(text.splitlines()[-1], "--csv", "centre shift")
    assert printed(_adjusted(rows), width=120).count("−0.23 … +0.01") == 20
