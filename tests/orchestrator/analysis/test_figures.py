"""Figures show the numbers of the files, named and labelled."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from orchestrator.analysis.comparison import compute
from orchestrator.analysis.figures import FIGURES, draw, write
from orchestrator.analysis.figures.panels import SHOWN_ARMS
from orchestrator.analysis.report.glossary import GLOSSARY
from orchestrator.forensics.roles.palette import colour
from orchestrator.forensics.roles.routing import STATES
from tests.naming import names

Write = Callable[..., Path]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_every_figure_is_titled_and_labelled(experiment: Write) -> None:
    figures = draw(compute(experiment(steps=tuple(range(0, 450, 50)), sidecar=True, interventions=True)))
    assert list(figures) == list(FIGURES)
    for name, drawing in figures.items():
        layout = json.loads(drawing.plot.to_json())["layout"]
        assert drawing.title
        assert layout["title"]["text"] == drawing.title.replace("&", "&amp;")
        assert re.search(r"\d", drawing.text), f"{name} says nothing in words"
        assert drawing.text.count(". ") <= 1, f"{name} says more than the gist"
        assert drawing.table
        assert drawing.table.rows
        assert {len(row) for row in drawing.table.rows} == {len(drawing.table.columns)}
        assert drawing.terms
        assert set(drawing.terms) <= set(GLOSSARY)
        for axis in ("xaxis", "yaxis"):
            assert any(value.get("title", {}).get("text") for key, value in layout.items() if key.startswith(axis))


def test_role_strips_carry_letters_and_colours_of_every_layer(experiment: Write) -> None:
    figure = draw(compute(experiment(seeds=(0,))))["layers"].plot
    strip, *halves, changes = figure.data[: 2 + 2]
    assert all(half.fill == "toself" for half in halves)
    assert figure.layout.xaxis.ticktext == ("0", "50", "100")
    assert [line[0] for line in strip.text] == ["H", "D", "P", "S"]
    assert strip.text[3][1] == ""  # a tie, which has two colours
    assert [drawn_in(strip, code) for code in np.array(strip.z)[:, 0]] == [colour(r) for r in STATES[:4]]
    assert hover(strip, 1, 0).startswith("layer 1, step 0<br><b>damper</b>, margin 0.20<br>CV 0.20<br>saturated 10")
    assert len(changes.x) == 2 * 4  # the fixture moves every role on at every reading
    assert names(changes.hovertext[0], "layer 0", "hub", "step 0", "damper", "50")


def hover(heatmap: go.Heatmap, layer: int, reading: int) -> str:
    """The hover text of a square, with its placeholders filled as plotly does."""
    told = heatmap.hovertemplate.replace("%{y}", str(layer)).removesuffix("<extra></extra>")
    for k, value in enumerate(heatmap.customdata[layer][reading]):
        told = told.replace(f"%{{customdata[{k}]}}", str(value))
    return told


def drawn_in(heatmap: go.Heatmap, z: float) -> str:
    """The colour of a value on the heat map's scale, which is piecewise linear."""
    share = (z - heatmap.zmin) / (heatmap.zmax - heatmap.zmin)
    at = max(i for i, (position, _) in enumerate(heatmap.colorscale) if position <= share + 1e-9)
    return heatmap.colorscale[at][1]


def test_the_most_frequent_role_is_paler_where_fewer_seeds_have_it(experiment: Write) -> None:
    root = experiment(arms=("uniform",), seeds=range(4), steps=(0,))
    for seed, role in enumerate(("damper", "damper", "hub", "hub")):  # layer 0: two against two
        edit_role(root / f"uniform/seed={seed}/forensics/step_00000000.json", 0, role)
    edit_role(root / "uniform/seed=3/forensics/step_00000000.json", 1, "hub")  # layer 1: three of four dampers
    figure = draw(compute(root))["layers"].plot
    together = figure.data[0]
    assert [line[0] for line in together.text] == ["≠", "D", "P", "S"]
    assert together.z[1][0] == pytest.approx(STATES.index("damper") + 0.75)
    assert "<b>damper</b> in 3 of 4 seeds" in hover(together, 1, 0)
    assert [trace.name for trace in figure.data if "paler" in str(trace.name)]
    menu = figure.layout.updatemenus[0].buttons
    assert [button.label for button in menu[1:]] == ["seed 0", "seed 1", "seed 2", "seed 3"]
    shown = [trace for trace, on in zip(figure.data, menu[4].args[0]["visible"], strict=True) if on]
    assert shown[0].text[1][0] == "H"  # of seed 3 alone
    assert hover(shown[0], 1, 0) == "layer 1, step 0<br><b>hub</b><br>CV 0.20"
    assert all(len(button.args[0]["visible"]) == len(figure.data) for button in menu)


def edit_role(path: Path, layer: int, role: str) -> None:
    reading = json.loads(path.read_text())
    reading["layers"][layer]["role"] = role
    path.write_text(json.dumps(reading))


def test_six_pairs_show_which_ranks_lie_within_the_papers_band(experiment: Write) -> None:
    root = experiment(seeds=range(6))
    for path in root.glob("variable/*/forensics/*.json"):
        reading, seed = json.loads(path.read_text()), int(path.parts[-3].removeprefix("seed="))
        for layer in reading["layers"]:
            layer["measures"]["effective_rank.o"] += (2.0, 2.9, 5.0, 2.0)[layer["layer"]] + 0.1 * seed
        path.write_text(json.dumps(reading))
    drawing = draw(compute(root))["effective_rank"]
    assert drawing.table
    assert [str(row[2])[-1] for row in drawing.table.rows] == ["≈", ")", "≠", "≈"]
    assert all(
        words in drawing.text for words in ("Of 12 differences", "10 are shown", "1 beyond", "1 are not decided")
    )


def test_rank_differences_lie_beside_the_papers_band(experiment: Write) -> None:
    root = experiment()
    for path in root.glob("variable/*/forensics/*.json"):
        reading = json.loads(path.read_text())
        for layer in reading["layers"]:
            layer["measures"]["effective_rank.o"] += 2.0 if layer["layer"] < 3 else 5.0
        path.write_text(json.dumps(reading))
    drawing = draw(compute(root))["effective_rank"]
    points = drawing.plot.data[0]
    assert points.y == pytest.approx([2.0, 2.0, 2.0, 5.0])
    assert all(words in drawing.text for words in ("Of 12 differences", "0 are shown", "12 are not decided"))
    assert drawing.table
    assert drawing.table.rows[3] == ["variable", "3", "+5.0 (+5.0 … +5.0)", *["0.0 (0.0 … 0.0)"] * 2]
    bands = [shape for shape in drawing.plot.layout.shapes if shape.type == "rect"]
    assert {(band.y0, band.y1) for band in bands} == {(-3.0, 3.0)}
    assert len(bands) == 3


def test_the_worst_spectral_norm_is_named(experiment: Write) -> None:
    root = experiment(seeds=(0,))
    path = root / "variable/seed=0/forensics/step_00000100.json"
    reading = json.loads(path.read_text())
    reading["layers"][2]["measures"]["spectral_norm.gate"] = 87.0  # beside 1, 2 and 4
    path.write_text(json.dumps(reading))
    drawing = draw(compute(root))["pathology"]
    assert "variable 43.5" in drawing.text
    assert drawing.table
    assert drawing.table.rows[1] == ["variable", "43.5", "layer 2, gate", "0", "100"]
    assert {a.text for a in drawing.plot.layout.annotations} >= {"warn: 10 ×", "critical: 30 ×"}


def test_an_interval_of_two_seeds_does_not_drown_the_difference(experiment: Write) -> None:
    figure = draw(compute(experiment()))["paired_eval"].plot
    panel = next(
        axis for key, axis in figure.to_dict()["layout"].items() if key.startswith("yaxis") and "range" in axis
    )
    assert panel["range"] == pytest.approx([-0.16, 0.16])  # the differences reach −0.1


def test_more_arms_than_can_be_told_apart_wait_for_a_click(experiment: Write) -> None:
    figure = draw(compute(experiment(arms=tuple("abcdefg"), seeds=(0,))))["flattening"].plot
    shown = {trace.name: trace.visible for trace in figure.data}
    assert [shown[arm] for arm in "abcdefg"] == [True] * SHOWN_ARMS + ["legendonly"] * (7 - SHOWN_ARMS)


def test_budget_lines_are_means_over_seeds(experiment: Write) -> None:
    figure = draw(compute(experiment()))["conservation"].plot
    lines = {t.hovertext: t.y for t in figure.data if t.mode.startswith("lines") and t.xaxis == "x"}
    assert lines["uniform, mean"] == pytest.approx(np.full(4, 10.5))
    assert lines["variable, by chance"] == pytest.approx(np.ones(4))
    assert [t.name for t in figure.data if t.showlegend] == ["uniform", "variable", "dotted: by chance"]


def test_loss_curves_and_their_difference(experiment: Write) -> None:
    figure = draw(compute(experiment()))["paired_eval"].plot
    lines = [t for t in figure.data if t.name == "variable" and t.line.width == 2]
    assert lines[0].x == (0, 50, 100)
    assert lines[0].y == pytest.approx([5.505, 4.455, 3.405])
    assert lines[1].y == pytest.approx([0.0, -0.05, -0.1])


def test_the_losses_of_the_figure_are_called_validation(experiment: Write) -> None:
    drawing = draw(compute(experiment()))["paired_eval"]
    assert "Validation loss" in drawing.title
    assert "test loss" in drawing.text
    assert drawing.table
    assert drawing.table.rows[1] == ["mean", "variable", "3.4050", "−0.1000", "−0.1000 … −0.1000"]


def test_intervals_that_the_frame_cuts_are_announced(experiment: Write) -> None:
    def announced(root: Path) -> bool:
        notes = draw(compute(root))["paired_eval"].plot.layout.annotations
        return "intervals reach<br>beyond the frame" in {note.text for note in notes}

    def apart(arm: str, seed: int, step: int, domain: str) -> float:
        return 3.0 + (0.01 * seed * step if arm == "variable" else 0.0)  # t of two seeds: ± 12.7 × 0.5

    assert announced(experiment(loss=apart))
    assert not announced(experiment(name="alike"))


def test_lines_over_the_steps_do_not_lean_on_colour(experiment: Write) -> None:
    figures = draw(compute(experiment()))
    for name in ("paired_eval", "budget_over_time", "attention_share"):
        means = [t for t in figures[name].plot.data if t.showlegend and t.name in ("uniform", "variable")]
        assert len({(t.line.dash, t.marker.symbol) for t in means}) == 2
        assert all("markers" in t.mode for t in means)


def test_equal_shares_are_not_magnified(experiment: Write) -> None:
    root = experiment()
    for path in root.glob("*/*/forensics/*.json"):
        reading = json.loads(path.read_text())
        for layer in reading["layers"]:
            layer["measures"]["attention_share"] += 1e-16 * layer["layer"]
        path.write_text(json.dumps(reading))
    low, high = draw(compute(root))["attention_share"].plot.layout.yaxis.range
    assert high - low >= 0.1 - 1e-9
    assert 0.0 <= low < 0.4 < high <= 1.0


LONG = "an arm whose name goes on and on and on beyond what a legend has room for"
NAMES = ("\"q'", "%{x}", "<b>B", "$x$", "a&amp;b", LONG)
HOVERED = """async at => {
    const plot = document.querySelector(".js-plotly-plot");
    await Plotly.restyle(plot, {visible: true});
    Plotly.Fx.hover(plot, [{curveNumber: at, pointNumber: 1}], [plot._fullData[at].xaxis + plot._fullData[at].yaxis]);
    await new Promise(done => setTimeout(done, 100));  // plotly shows a new hover every 50 ms at most
}"""


@pytest.fixture
def tab() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page(viewport={"width": 720, "height": 900})
        browser.close()


def test_names_are_read_as_they_were_written(experiment: Write, tmp_path: Path, tab: Page) -> None:
    """A browser shows hostile names literally in legend, titles and hover."""
    figures = draw(compute(experiment(arms=NAMES, seeds=(0, 1))))
    write(figures, tmp_path)
    shown = [*NAMES[:-1], "an arm whose name goes on and on and on…"]
    for figure in ("flattening", "paired_eval"):
        tab.goto((tmp_path / f"{figure}.html").as_uri())
        tab.wait_for_selector(".legendtext")
        assert tab.locator(".legendtext").all_text_contents() == shown
        for name in NAMES:
            at = next(
                k for k, t in enumerate(figures[figure].plot.data)
                if t.showlegend and str(t.hovertext).startswith(html.escape(name, quote=False))
            )  # fmt: skip
            tab.evaluate(HOVERED, at)
            expect(tab.locator(".hoverlayer")).to_contain_text(f"{name}, mean")  # plotly draws it within 50 ms
    tab.goto((tmp_path / "role_migration.html").as_uri())
    tab.wait_for_selector(".annotation-text")
    assert tab.locator(".annotation-text").all_text_contents()[:5] == shown[:5]
    assert names(figures["effective_rank"].title, "Effective rank", "\"q'")
    tab.goto((tmp_path / "effective_rank.html").as_uri())
    tab.wait_for_selector(".gtitle")
    assert tab.locator(".gtitle").all_text_contents() == [figures["effective_rank"].title]


def test_panel_titles_fit_their_panels(experiment: Write, tmp_path: Path, tab: Page) -> None:
    write(draw(compute(experiment(arms=(LONG, LONG[::-1]), sidecar=True))), tmp_path)
    for path in sorted(tmp_path.glob("*.html")):
        tab.goto(path.as_uri())
        tab.wait_for_selector(".main-svg")
        boxes = [title.bounding_box() for title in tab.locator(".annotation-text").all()]
        lines = [box for box in boxes if box]
        for a, b in combinations(lines, 2):
            beside = abs(a["y"] - b["y"]) < 8
            assert not beside or min(a["x"] + a["width"], b["x"] + b["width"]) <= max(a["x"], b["x"]), path.stem


def test_the_labels_of_guides_lie_on_them(experiment: Write) -> None:
    root = experiment(seeds=(0,))
    path = root / "variable/seed=0/forensics/step_00000100.json"
    reading = json.loads(path.read_text())
    reading["layers"][2]["measures"]["spectral_norm.gate"] = 87.0
    path.write_text(json.dumps(reading))
    figure = draw(compute(root))["pathology"].plot
    heights = {note.text: note.y for note in figure.layout.annotations}
    assert heights == {"warn: 10 ×": pytest.approx(1.0), "critical: 30 ×": pytest.approx(np.log10(30))}


def test_many_readings_stay_legible_and_small(experiment: Write) -> None:
    steps = range(0, 5000, 50)
    figure = draw(compute(experiment(seeds=range(3), steps=steps)))["layers"].plot
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(maps) == 2 * (1 + 3)
    assert all(trace.texttemplate is None and trace.xgap == 0 for trace in maps)  # under 8 pixels a reading
    assert "role changed" not in {trace.name for trace in figure.data}
    assert len(figure.to_json()) < 75 * sum(len(trace.z) * len(trace.z[0]) for trace in maps)  # bytes a square
    alone = draw(compute(experiment(name="few")))["layers"].plot
    assert "role changed" in {trace.name for trace in alone.data}


def test_a_tie_is_drawn_in_both_colours(experiment: Write) -> None:
    root = experiment(seeds=(0,))
    path = root / "uniform/seed=0/forensics/step_00000050.json"
    reading = json.loads(path.read_text())
    reading["layers"][1]["role"] = "damper/hub"
    path.write_text(json.dumps(reading))
    figure = draw(compute(root))["layers"].plot
    halves = [trace for trace in figure.data if trace.type == "scatter" and trace.fill == "toself"]
    painted = {
        trace.fillcolor for trace in halves
        if any((round(x), round(y)) == (1, 1) for x, y in zip(trace.x, trace.y, strict=True) if x is not None)
    }  # fmt: skip
    assert painted == {colour("damper"), colour("hub")}
    assert "tie: both colours" in {trace.name for trace in figure.data}


def test_a_measure_that_is_not_known_is_a_dash(experiment: Write) -> None:
    root = experiment(seeds=(0,))
    path = root / "uniform/seed=0/forensics/step_00000050.json"
    reading = json.loads(path.read_text())
    reading["layers"][1]["measures"] |= {"cv": None, "attention_share": None}
    path.write_text(json.dumps(reading))
    strip = draw(compute(root))["layers"].plot.data[0]
    assert "<br>CV –<br>" in hover(strip, 1, 1)
    assert "attention share –" in hover(strip, 1, 1)
    assert "momentum on down −0.010" in hover(strip, 1, 1)
