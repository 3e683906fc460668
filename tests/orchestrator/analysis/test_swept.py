"""Many experiments beside each other: the keys in which they differ, the order of the rows, the loss by each key."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from orchestrator.analysis import compare, overview
from orchestrator.analysis.figures.outcomes import factors, outcome_plots
from orchestrator.analysis.survey import ArmSummary, data_of, ranked, survey
from orchestrator.analysis.swept import as_text, frame, short_names, swept, together
from orchestrator.compare import main

Write = Callable[..., Path]
Edit = Callable[[Path, str, Any], None]
HOSTILE = "<img src=x onerror=alert(1)>[red]%{x}"


@pytest.fixture
def sweep(experiment: Write, edit_config: Edit) -> Callable[..., list[Path]]:
    """Two arms for each value of a key; the loss rises with the number of the value."""

    def write(key: str, *values: object, name: str = "sweep", **options: Any) -> list[Path]:
        def loss_at(number: int) -> Callable[[str, int, int, str], float]:
            return lambda arm, seed, step, domain: 3.0 + number + 0.01 * seed - 0.1 * (arm == "variable")

        made = [
            experiment(name=f"{name}__{number}", loss=loss_at(number), **options) for number, _ in enumerate(values)
        ]
        for root, value in zip(made, values, strict=True):
            for cell in root.glob("*/seed=*"):
                edit_config(cell, key, value)
        return made

    return write


def data(root: Path, digest: str | None) -> None:
    """Another corpus, as its logs and `experiment.yaml` tell."""
    for path in root.glob("*/*/metrics.jsonl"):
        path.write_text(path.read_text().replace('"corpus"', json.dumps(digest or "")))
    path = root / "experiment.yaml"
    known = yaml.safe_load(path.read_text())
    recorded = {arm: {"digest": digest, "domains": {}} for arm in known["arms"]} if digest else {}
    path.write_text(yaml.safe_dump(known | {"data": recorded}, sort_keys=False))


def printed(arms: list[ArmSummary], width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    overview.print_overview(arms, [], console)
    return console.file.getvalue()


def summary(arm: str, loss: float | None = 1.0, experiment: str = "x", **settings: Any) -> ArmSummary:
    return ArmSummary(experiment, experiment, "", "a", arm, loss=loss, data="d", settings=settings)


def test_the_losses_are_those_of_each_experiments_own_verdict(sweep: Callable[..., list[Path]]) -> None:
    roots = sweep("optim.lr", 0.001, 0.002, seeds=range(3))
    rows = survey(roots)
    for root in roots:
        compare(root)
        said = json.loads((root / "comparison/verdict.json").read_text())["losses"]
        (own,) = (one for one in said if (one["metric"], one["domain"]) == ("test_loss", "mean"))
        arm, baseline = (
            next(r for r in rows if (r.directory, r.arm) == (str(root), of)) for of in ("variable", "uniform")
        )
        assert (arm.loss, baseline.loss) == pytest.approx((own["b"], own["a"]), abs=1e-12)
        assert (arm.delta, arm.low, arm.high, arm.n) == (own["delta"], own["low"], own["high"], own["n"])


def test_any_order_of_the_directories_gives_the_same_table(sweep: Callable[..., list[Path]], experiment: Write) -> None:
    roots = [*sweep("optim.lr", 0.001, 0.002), experiment(arms=("alone",), name="single"), experiment(name="broken")]
    next(roots[-1].rglob("step_00000100.json")).write_text("{")
    data(roots[2], "other")
    tables = {frame(survey(order)).to_csv() for order in permutations(roots)}
    assert len(tables) == 1


def test_the_swept_key_is_the_first_column_and_the_best_row_comes_first(sweep: Callable[..., list[Path]]) -> None:
    rows = survey(sweep("optim.lr", 0.002, 0.001))
    assert swept(rows) == ["optim.lr", "width.start"]
    assert [(as_text(r, "optim.lr"), r.arm) for r in rows] == [
        ("0.002", "variable"), ("0.002", "uniform"), ("0.001", "variable"), ("0.001", "uniform"),
    ]  # fmt: skip
    head = printed(rows).splitlines()[2].split()
    assert head[:5] == ["experiment", "arm", "lr", "start", "n"]


def test_losses_on_other_data_are_not_ranked_among_each_other(
    sweep: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    roots = sweep("optim.lr", 0.001, 0.002, 0.003)
    data(roots[0], "another")
    rows = survey(roots)
    assert list(data_of(rows).values()) == [1, 2]
    assert [r.directory for r in rows] == [
        str(root) for root in (roots[1], roots[1], roots[2], roots[2], *2 * [roots[0]])
    ]
    assert {factor.data for factor in factors(rows)} == {", on data 1", ", on data 2"}
    assert not any(len({arm.data for arm in factor.arms}) > 1 for factor in factors(rows))
    assert main([*map(str, roots), "--html", str(tmp_path / "all.html")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 corpora" in said
    assert '<th scope="col"><button>data</button>' in (tmp_path / "all.html").read_text()


def test_an_unknown_corpus_and_a_loss_that_is_missing_come_last() -> None:
    known, unknown = summary("b", 2.0), replace(summary("c", 1.0), data=None)
    missing, problem = summary("d", None), replace(summary("e", None), problem="gone")
    assert ranked([problem, missing, unknown, known]) == [known, unknown, missing, problem]


def test_names_are_short_where_that_is_clear() -> None:
    found = short_names(["optim.lr", "model.width", "width.width", "a.n", "needs"], {"n"})
    assert list(found.values()) == ["lr", "model.width", "width.width", "a.n", "needs"]


def test_keys_of_who_a_cell_is_and_where_it_ran_are_no_columns(experiment: Write, edit_config: Edit) -> None:
    roots = [experiment(name=name) for name in "ab"]
    for key, value in {
        "train.threads": 2, "tracker.project": "x", "launcher.retries": 9, "question": "Why?", "root": "elsewhere",
        "data.cache_dir": "x", "train.keep_states": 9,
    }.items():  # fmt: skip
        for cell in roots[1].glob("*/seed=*"):
            edit_config(cell, key, value)
    assert swept(survey(roots)) == ["width.start"]


def test_values_of_every_kind_are_told_apart_and_drawn_as_categories() -> None:
    values = [None, [1, 2], [1, 3], True, "true ", 1.5, {"a": [HOSTILE]}, HOSTILE]
    rows = [summary("b", 1.0 + i, f"x{i}", **{"sidecar.bounds": value}) for i, value in enumerate(values)]
    rows.append(summary("b", 9.0, "absent"))
    rows[-1] = replace(rows[-1], settings={"optim.lr": 1.0})
    assert "sidecar.bounds" in swept(rows)
    texts = [as_text(row, "sidecar.bounds") for row in rows]
    assert len(set(texts)) == len(rows)
    assert texts[:4] == ["null", "[1, 2]", "[1, 3]", "true"]
    drawing = next(one for one in outcome_plots(rows) if "sidecar.bounds" in one.title)
    assert drawing.plot.layout.xaxis.type == "category"
    drawn = {x for trace in drawing.plot.data for x in trace.x}
    assert len(drawn) == len(rows)
    assert not any("<img" in x for x in drawn)
    assert printed(rows)
    assert frame(rows)["sidecar.bounds"].tolist()[1:3] == ["[1, 2]", "[1, 3]"]


def test_keys_that_change_together_are_one_factor() -> None:
    rows = [
        summary("b", 1.0, f"x{i}", **{"model.layers": 4 * i, "model.width": 64 * i, "optim.lr": lr})
        for i in (1, 2)
        for lr in (0.1, 0.2)
    ]
    assert together(["model.layers", "model.width", "optim.lr"], rows) == [
        ["model.layers", "model.width"],
        ["optim.lr"],
    ]
    by_layers, by_lr = outcome_plots(rows)
    assert "model.width" in by_layers.text
    assert [list(trace.x) for trace in by_layers.plot.data] == [[4, 8], [4, 8]]
    assert [list(trace.x) for trace in by_lr.plot.data] == [[0.1, 0.2], [0.1, 0.2]]


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0.001, 0.002], None), ([1e-4, 1e-3, 1e-2], "log"), ([0, 1, 100], None), ([-1.0, 20.0], None)],
)
def test_numbers_far_apart_have_a_logarithmic_axis(values: list[float], scale: str | None) -> None:
    rows = [summary("b", 2.0 - i, f"x{i}", **{"optim.lr": value}) for i, value in enumerate(values)]
    (drawing,) = outcome_plots(rows[::-1])
    assert drawing.plot.layout.xaxis.type == scale
    (trace,) = drawing.plot.data
    assert list(trace.x) == values
    assert list(trace.y) == [row.loss for row in rows]


def test_the_bars_are_the_intervals_and_the_colours_the_arms(sweep: Callable[..., list[Path]]) -> None:
    rows = survey(sweep("optim.lr", 0.001, 0.002, seeds=range(3)))
    (drawing,) = outcome_plots(rows)
    assert [trace.name for trace in drawing.plot.data] == ["uniform", "variable"]
    for trace in drawing.plot.data:
        own = sorted((r for r in rows if r.arm == trace.name), key=lambda r: r.settings["optim.lr"])
        y, up, down = (np.array(of) for of in (trace.y, trace.error_y.array, trace.error_y.arrayminus))
        assert y + up == pytest.approx([r.loss_high for r in own])
        assert y - down == pytest.approx([r.loss_low for r in own])


def test_arms_that_are_the_sweep_are_drawn_within_their_experiment() -> None:
    rows = [summary(f"lr_{i}", 1.0 + i, **{"optim.lr": 0.1 * (i + 1)}) for i in range(3)]
    (drawing,) = outcome_plots(rows)
    (trace,) = drawing.plot.data
    assert (trace.name, list(trace.y)) == ("x", [1.0, 2.0, 3.0])


def test_nothing_is_drawn_where_nothing_differs(experiment: Write, tmp_path: Path) -> None:
    page = tmp_path / "all.html"
    assert outcome_plots(survey([experiment(arms=("alone",))])) == []
    assert main([str(tmp_path / "width_ablation"), "--html", str(page)]) == 0
    assert "plotly" not in page.read_text()


def test_an_unfinished_arm_and_one_without_cells_keep_their_rows(experiment: Write, edit_metrics: Any) -> None:
    root = experiment(arms=("uniform", "variable", "third"))
    for cell in root.glob("variable/*"):
        edit_metrics(cell, lambda records: records.pop())
    for path in sorted(root.glob("third/**/*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    rows = survey([root])
    assert [(r.arm, r.loss is None, r.n) for r in rows] == [
        ("uniform", False, 2),
        ("variable", True, 0),
        ("third", True, 0),
    ]
    assert rows[2].settings == {}
    assert "–" in printed(rows)


def test_the_csv_has_whole_names_and_the_page_no_markup_of_theirs(
    sweep: Callable[..., list[Path]], edit_config: Edit, tmp_path: Path
) -> None:
    roots = sweep("optim.lr", 0.001, 0.002, name="s", question=HOSTILE)
    for cell in roots[0].glob("*/seed=*"):
        edit_config(cell, "sidecar.bounds", {HOSTILE: [0.5, 2.0]})
    path = roots[0] / "experiment.yaml"
    path.write_text(path.read_text().replace("name: s__0", f"name: '{HOSTILE}'"))
    table, page = tmp_path / "all.csv", tmp_path / "all.html"
    assert main([*map(str, roots), "--csv", str(table), "--html", str(page)]) == 0
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["optim.lr"] for row in rows] == ["0.001", "0.001", "0.002", "0.002"]
    assert [row["loss"] for row in rows] == [str(r.loss) for r in survey(roots)]
    assert rows[0]["experiment"] == HOSTILE
    text = page.read_text()
    assert "<img" not in text
    assert html.escape(HOSTILE) in text
    assert len(re.findall('class="plot"', text)) == 1, "both keys change together"


@pytest.mark.browser
def test_the_page_draws_its_figures(
    sweep: Callable[..., list[Path]], tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    page, name = tmp_path / "all.html", HOSTILE.replace("%", "")
    assert main([*map(str, sweep("optim.lr", 0.001, 0.02, name=name)), "--html", str(page)]) == 0
    opened = open_page(page)
    assert opened.draw_all() == 1
    assert opened.page.locator(".plot .legend .traces").count() == 2
    assert opened.page.locator(".plot .errorbar").count() == 4
    assert not opened.page.locator("img").count()
    assert opened.said == []


def test_experiments_on_other_domains_differ_in_the_names_of_these_alone() -> None:
    def on(*domains: str, weight: float = 1.0) -> ArmSummary:
        settings = {"data.domains": ", ".join(domains), "optim.lr": weight}
        settings |= {f"data.domains.{name}.{key}": 1 for name in domains for key in ("weight", "path")}
        settings["data.domains.code.weight"] = weight
        return ArmSummary("x", "x", "", "a", "a", settings=settings)

    assert swept([on("code"), on("code", "facts")]) == ["data.domains"]
    assert set(swept([on("code"), on("code", "facts", weight=2.0)])) == {
        "data.domains", "data.domains.code.weight", "optim.lr",
    }  # fmt: skip
