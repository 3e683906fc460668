"""Grids of panels and the marks that every figure shares: a line per arm, dots per seed, bands of intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import scipy
from plotly.subplots import make_subplots

from orchestrator.palette import arm_line

SHOWN_ARMS = 4  # beyond which an arm is drawn when its name is clicked
LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "title": {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "container",
              "yanchor": "top", "pad": {"t": 16}},
    "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"},
    "margin": {"l": 70, "r": 24, "t": 92, "b": 92},
    "hoverlabel": {"align": "left"},
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure and its words."""

    plot: go.Figure
    text: str  # what it shows, for whoever cannot see it
    terms: tuple[str, ...] = ()  # what the glossary should explain

    @property
    def title(self) -> str:
        return str(self.plot.layout.title.text)


def panels(rows: int, cols: int, height: int, titles: Sequence[str], title: str, gap: int = 64) -> go.Figure:
    """A grid of panels, each `height` pixels high, `gap` pixels between rows."""
    inner = rows * height + (rows - 1) * gap
    figure = make_subplots(
        rows=rows, cols=cols, subplot_titles=list(titles), vertical_spacing=gap / inner if rows > 1 else 0,
        horizontal_spacing=0.1 if cols == 2 else 0.07 if cols < 4 else 0.04,
    )  # fmt: skip
    margin = LAYOUT["margin"]
    figure.update_layout(**LAYOUT, height=inner + margin["t"] + margin["b"])
    return figure.update_layout(title_text=title)


def label(figure: go.Figure, rows: int, cols: int, x: str, y: str) -> go.Figure:
    """Axis titles at the outer edges only."""
    for col in range(1, cols + 1):
        figure.update_xaxes(title_text=x, row=rows, col=col)
    for row in range(1, rows + 1):
        figure.update_yaxes(title_text=y, row=row, col=1)
    return figure


def seeds_and_mean(figure: go.Figure, profiles: list[np.ndarray], name: str, index: int, row: int, col: int) -> None:
    """Dots for the seeds' values per layer, a line for their mean; `index` is the arm's."""
    paint, _, symbol = arm_line(index)
    for values in profiles if len(profiles) > 1 else []:
        figure.add_scatter(
            x=list(range(values.size)), y=values, mode="markers", opacity=0.45, showlegend=False, name=name,
            legendgroup=name, visible=visible(index), marker={"color": paint, "size": 6, "symbol": symbol},
            hovertemplate=f"layer %{{x}}: %{{y:.4g}}<extra>{name}</extra>", row=row, col=col,
        )  # fmt: skip
    mean_line(figure, profiles, name, index, row, col)


def mean_line(
    figure: go.Figure, profiles: list[np.ndarray], name: str, index: int, row: int, col: int, *, chance: bool = False
) -> None:
    """A line for the mean of profiles of one depth; dotted where it is what chance gives."""
    if not profiles or len({values.size for values in profiles}) > 1:
        return
    paint, dash, symbol = arm_line(index)
    called = f"{name}, by chance" if chance else name
    figure.add_scatter(
        x=list(range(profiles[0].size)), y=np.mean(profiles, axis=0), name=called, legendgroup=called,
        mode="lines" if chance else "lines+markers", showlegend=(row, col) == (1, 1), visible=visible(index),
        line={"color": paint, "width": 1.5 if chance else 2, "dash": "dot" if chance else dash},
        marker={"symbol": symbol, "size": 7, "color": paint},
        hovertemplate=f"layer %{{x}}: %{{y:.4g}}<extra>{called}, mean</extra>", row=row, col=col,
    )  # fmt: skip


def runs_and_mean(
    figure: go.Figure, runs: list[dict[int, float]], name: str, index: int, row: int, col: int, *, band: bool = False
) -> None:
    """A faint line per seed over the steps, a strong one for their mean at the steps they share, and its interval."""
    paint, dash, _ = arm_line(index)
    common = {"legendgroup": name, "visible": visible(index), "row": row, "col": col}
    for run in runs if len(runs) > 1 else []:
        figure.add_scatter(
            x=list(run), y=list(run.values()), mode="lines", opacity=0.35, showlegend=False, name=name,
            line={"color": paint, "width": 1}, hoverinfo="skip", **common,
        )  # fmt: skip
    steps = [step for step in (runs[0] if runs else {}) if all(step in run for run in runs)]
    if not steps:
        return
    values = np.array([[run[step] for step in steps] for run in runs])  # [n, steps]
    mean = values.mean(axis=0)
    if band and len(runs) > 1:
        half = scipy.stats.t.ppf(0.975, len(runs) - 1) * scipy.stats.sem(values, axis=0)
        figure.add_scatter(
            x=[*steps, *steps[::-1]], y=[*(mean + half), *(mean - half)[::-1]], fill="toself", mode="none",
            fillcolor=paint, opacity=0.22, showlegend=False, hoverinfo="skip", name=f"{name}, 95 %", **common,
        )  # fmt: skip
    figure.add_scatter(
        x=steps, y=mean, mode="lines", name=name, showlegend=(row, col) == (1, 1),
        line={"color": paint, "width": 2, "dash": dash},
        hovertemplate=f"step %{{x}}: %{{y:.4f}}<extra>{name}, mean of {len(runs)}</extra>", **common,
    )  # fmt: skip


def guide(figure: go.Figure, y: float, row: int, col: int, text: str = "") -> None:
    """A thin horizontal line to read values against."""
    figure.add_hline(
        y=y, line={"color": "#888888", "width": 1, "dash": "dot" if text else "solid"}, row=row, col=col,
        **({"annotation": {"text": text, "font": {"size": 11}}, "annotation_position": "top right"} if text else {}),
    )  # fmt: skip


def focus(figure: go.Figure, values: Iterable[float], least: float, row: int, col: int) -> None:
    """Scale the y axis to estimates around 0, at least ± `least`: intervals of two seeds would drown them."""
    reach = 1.6 * max([least, *(abs(value) for value in values)])
    figure.update_yaxes(range=[-reach, reach], row=row, col=col)


def visible(index: int) -> bool | str:
    """Whether the arm is drawn from the start."""
    return True if index < SHOWN_ARMS else "legendonly"


def spoken(values: Sequence[float] | np.ndarray, digits: int = 2) -> str:
    """Numbers of a profile as a reader would say them, layer by layer."""
    return ", ".join(f"{value:.{digits}f}" for value in values)
