"""Figures show the numbers of the files, named and labelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.compare.comparison import compute
from orchestrator.compare.figures import FIGURES, draw
from orchestrator.compare.migration import STATES
from orchestrator.palette import colour, letter

Write = Callable[..., Path]


def test_every_figure_is_titled_and_labelled(experiment: Write) -> None:
    figures = draw(compute(experiment(sidecar=True)))
    assert list(figures) == list(FIGURES)
    for figure in figures.values():
        layout = json.loads(figure.to_json())["layout"]
        assert layout["title"]["text"]
        for axis in ("xaxis", "yaxis"):
            assert any(value.get("title", {}).get("text") for key, value in layout.items() if key.startswith(axis))


def test_role_strips_carry_letters_and_colours_of_every_layer(experiment: Write) -> None:
    figure = draw(compute(experiment(seeds=(0,))))["layers"]
    strip = next(trace for trace in figure.data if trace.type == "heatmap")
    assert strip.x == ("0", "50", "100")
    assert [line[0] for line in strip.text] == ["H", "D", "P", "S"]
    assert strip.text[3][1] == "·"
    edges = {round((position * len(STATES)) // 1): paint for position, paint in strip.colorscale[::2]}
    assert edges == {i: colour(role) for i, role in enumerate(STATES)}


def test_budget_lines_are_means_over_seeds(experiment: Write) -> None:
    figure = draw(compute(experiment()))["conservation"]
    lines = {t.name: t.y for t in figure.data if t.mode == "lines" and t.showlegend}
    assert lines["uniform"] == pytest.approx(np.full(4, 10.5))
    assert lines["variable, by chance"] == pytest.approx(np.ones(4))


def test_loss_curves_and_their_difference(experiment: Write) -> None:
    figure = draw(compute(experiment()))["paired_eval"]
    lines = [t for t in figure.data if t.name == "variable" and t.line.width == 2]
    assert lines[0].x == (0, 50, 100)
    assert lines[0].y == pytest.approx([5.505, 4.455, 3.405])
    assert lines[1].y == pytest.approx([0.0, -0.05, -0.1])


def test_letters_tell_roles_apart_without_colour() -> None:
    assert [letter(role) for role in (*STATES, "damper/hub")] == ["H", "D", "P", "S", "·", "·"]
    assert len({colour(role) for role in STATES}) == len(STATES)
