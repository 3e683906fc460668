"""Figures show the numbers of the files, named and labelled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from orchestrator.compare.comparison import compute
from orchestrator.compare.figures import FIGURES, draw
from orchestrator.compare.migration import STATES
from orchestrator.compare.report.glossary import GLOSSARY
from orchestrator.palette import colour

Write = Callable[..., Path]


def test_every_figure_is_titled_and_labelled(experiment: Write) -> None:
    figures = draw(compute(experiment(sidecar=True)))
    assert list(figures) == list(FIGURES)
    for name, drawing in figures.items():
        layout = json.loads(drawing.plot.to_json())["layout"]
        assert drawing.title
        assert re.search(r"\d", drawing.text), f"{name} says nothing in words"
        assert drawing.terms
        assert set(drawing.terms) <= set(GLOSSARY)
        for axis in ("xaxis", "yaxis"):
            assert any(value.get("title", {}).get("text") for key, value in layout.items() if key.startswith(axis))


def test_role_strips_carry_letters_and_colours_of_every_layer(experiment: Write) -> None:
    figure = draw(compute(experiment(seeds=(0,))))["layers"].plot
    strip, changes = figure.data[:2]
    assert figure.layout.xaxis.ticktext == ("0", "50", "100")
    assert [line[0] for line in strip.text] == ["H", "D", "P", "S"]
    assert strip.text[3][1] == "·"
    assert [drawn_in(strip, code) for code in np.array(strip.z)[:, 0]] == [colour(r) for r in STATES[:4]]
    assert strip.hovertext[1][0].startswith("layer 1, step 0<br><b>damper</b>, margin 0.20<br>CV 0.20")
    assert len(changes.x) == 2 * 4  # the fixture moves every role on at every reading
    assert changes.hovertext[0] == "layer 0: hub until step 0, damper at 50"


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
    assert "<b>damper</b> in 3 of 4 seeds" in together.hovertext[1][0]
    menu = figure.layout.updatemenus[0].buttons
    assert [button.label for button in menu] == ["most frequent over the seeds", "seed 0", "seed 1", "seed 2", "seed 3"]
    shown = [trace for trace, on in zip(figure.data, menu[4].args[0]["visible"], strict=True) if on]
    assert shown[0].text[1][0] == "H"  # of seed 3 alone
    assert all(len(button.args[0]["visible"]) == len(figure.data) for button in menu)


def edit_role(path: Path, layer: int, role: str) -> None:
    reading = json.loads(path.read_text())
    reading["layers"][layer]["role"] = role
    path.write_text(json.dumps(reading))


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
    assert "W_o: 3 of 4 layers within ±3" in drawing.text
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
    assert "variable: at most 43.5 times its peers (layer 2, gate)." in drawing.text
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
    assert [shown[arm] for arm in "abcd"] == [True] * 4
    assert [shown[arm] for arm in "efg"] == ["legendonly"] * 3


def test_budget_lines_are_means_over_seeds(experiment: Write) -> None:
    figure = draw(compute(experiment()))["conservation"].plot
    lines = {t.name: t.y for t in figure.data if t.mode.startswith("lines") and t.showlegend}
    assert lines["uniform"] == pytest.approx(np.full(4, 10.5))
    assert lines["variable, by chance"] == pytest.approx(np.ones(4))


def test_loss_curves_and_their_difference(experiment: Write) -> None:
    figure = draw(compute(experiment()))["paired_eval"].plot
    lines = [t for t in figure.data if t.name == "variable" and t.line.width == 2]
    assert lines[0].x == (0, 50, 100)
    assert lines[0].y == pytest.approx([5.505, 4.455, 3.405])
    assert lines[1].y == pytest.approx([0.0, -0.05, -0.1])
