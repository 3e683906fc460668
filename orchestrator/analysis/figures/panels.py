"""Lay out grids of panels: sizes, titles, axis ranges and guide lines of every figure, and its text."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from orchestrator.analysis.formatting import elide, number
from orchestrator.analysis.sections.section import Section

NARROWEST = 720  # least width of a figure, pixels
CHARACTER = 7.5  # pixels
LONGEST = 40  # most characters of a name; the hover shows all
LINE, KEY = 20, 50  # pixels: height of a line of the legend, width of the symbol before a name
SHOWN_ARMS = 4  # arms that are drawn at once; the others when their names are clicked
LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "title": {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "container",
              "yanchor": "top", "pad": {"t": 16}},
    "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"},
    "margin": {"l": 70, "r": 24, "t": 92, "b": 92},
    "hoverlabel": {"align": "left", "namelength": -1},
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure, with a sentence and a table for readers who cannot see it."""

    plot: go.Figure
    title: str
    text: str  # its message, in a sentence or two
    table: Section | None = None  # the figure's numbers, mostly those at its end
    terms: tuple[str, ...] = ()  # keys of the glossary


def escaped(name: str) -> str:
    """Escape a name for plotly, which reads tags but not quotes as markup."""
    return html.escape(name, quote=False)


def short(name: str, longest: int = LONGEST) -> str:
    """Shorten the name to `longest` characters and escape it."""
    return escaped(elide(name, longest))


def width_of(cols: int) -> float:
    """Return the width in pixels of one of `cols` panels side by side, in the narrowest figure."""
    margin = LAYOUT["margin"]
    return (NARROWEST - margin["l"] - margin["r"]) * (1 - _spacing(cols) * (cols - 1)) / cols


def _spacing(cols: int) -> float:
    return 0.1 if cols == 2 else 0.07 if cols < 4 else 0.04


def panels(rows: int, cols: int, height: int, titles: Sequence[str], title: str, gap: int = 64) -> go.Figure:
    """Make a grid of panels, each `height` pixels high, with `gap` pixels between rows."""
    inner = rows * height + (rows - 1) * gap
    longest = min(LONGEST, int(width_of(cols) / CHARACTER))
    figure = make_subplots(
        figure=go.Figure(layout=LAYOUT),  # here: over a layout that is there, plotly merges templates, which takes long
        rows=rows, cols=cols, subplot_titles=[short(name, longest) for name in titles],
        vertical_spacing=gap / inner if rows > 1 else 0, horizontal_spacing=_spacing(cols),
    )  # fmt: skip
    for annotation, name in zip(figure.layout.annotations, filter(None, titles), strict=True):
        annotation.font.size = 14
        if len(name) > longest:
            annotation.hovertext = escaped(name)
    margin = LAYOUT["margin"]
    height = inner + margin["t"] + margin["b"]
    return figure.update_layout(height=height, title_text=short(title, int(NARROWEST / CHARACTER)))


def label_axes(figure: go.Figure, rows: int, cols: int, x: str, y: str) -> None:
    """Write axis titles at the outer edges only, and make room for the legend under them."""
    for col in range(1, cols + 1):
        figure.update_xaxes(title_text=x, row=rows, col=col)
    for row in range(1, rows + 1):
        figure.update_yaxes(title_text=y, row=row, col=1)
    names = [str(trace.name) for trace in figure.data if trace.showlegend is not False and trace.name]
    more = LINE * (_lines(names) - 1)
    figure.update_layout(height=figure.layout.height + more, margin_b=figure.layout.margin.b + more)


def step_axis(figure: go.Figure, steps: Sequence[int], cols: int) -> None:
    """Number the columns of maps of layer × step, in `cols` panels side by side, by their steps."""
    ticks = range(0, len(steps), max(1, -(-len(steps) * cols // 16)))
    figure.update_xaxes(
        tickvals=list(ticks), ticktext=[str(steps[i]) for i in ticks], showgrid=False, zeroline=False,
        range=[-0.5, len(steps) - 0.5],
    )  # fmt: skip


def layer_axis(figure: go.Figure, depth: int) -> None:
    """Number the rows of such maps by their layers, the first on top."""
    figure.update_yaxes(showgrid=False, zeroline=False, dtick=max(1, depth // 12), range=[depth - 0.5, -0.5])


def _lines(names: Iterable[str]) -> int:
    """Return the number of lines of a legend with these names in the narrowest figure."""
    lines, used = 1, 0.0
    for name in names:
        width = KEY + CHARACTER * len(name)
        if used and used + width > width_of(1):
            lines, used = lines + 1, 0.0
        used += width
    return lines


def guide_line(figure: go.Figure, y: float, row: int, col: int, words: str = "", *, log: bool = False) -> None:
    """Draw a thin horizontal line at `y`; `log` where the axis is logarithmic."""
    line = {"color": "#888888", "width": 1, "dash": "dot" if words else "solid"}
    figure.add_hline(y=y, line=line, row=row, col=col)
    if words:
        figure.add_annotation(  # an annotation, unlike a line, takes the logarithm of its value
            text=words, x=1, xref="x domain", xanchor="right", y=math.log10(y) if log else y, yanchor="bottom",
            showarrow=False, font={"size": 11}, row=row, col=col,
        )  # fmt: skip


def frame_around_zero(
    figure: go.Figure, values: Iterable[float], least: float, row: int, col: int, *, ends: Iterable[float] = ()
) -> None:
    """Scale the y axis to estimates around 0, at least ± `least`, with a note where ends of intervals lie beyond.

    The intervals of two seeds are so wide that they would hide differences between the estimates.
    """
    reach = 1.6 * max([least, *(abs(value) for value in values)])
    figure.update_yaxes(range=[-reach, reach], row=row, col=col)
    if any(abs(end) > reach for end in ends):
        figure.add_annotation(
            text="intervals reach<br>beyond the frame", x=0.5, xref="x domain", y=0, yref="y domain", yanchor="bottom",
            showarrow=False, font={"size": 11}, row=row, col=col,
        )  # fmt: skip


def frame_shares(figure: go.Figure, values: Iterable[float], least: float, row: int, col: int) -> None:
    """Scale the y axis to shares between 0 and 1, over a range of at least `least`, lest noise look large."""
    low, high = min(found := list(values)), max(found)
    middle, reach = (low + high) / 2, max(least, 1.15 * (high - low)) / 2
    figure.update_yaxes(range=[max(0.0, middle - reach), min(1.0, middle + reach)], row=row, col=col)


def per_arm(values: Mapping[str, float], digits: int) -> str:
    """Write the value of each arm; of more than `SHOWN_ARMS` only the smallest and the largest."""
    if len(values) <= SHOWN_ARMS:
        return ", ".join(f"{name} {value:.{digits}f}" for name, value in values.items())
    low, high = (pick(values, key=values.__getitem__) for pick in (min, max))
    if values[low] == values[high]:
        return f"{values[low]:.{digits}f} in all {len(values)} arms"
    return f"{values[low]:.{digits}f} ({low}) to {values[high]:.{digits}f} ({high}) over {len(values)} arms"


def layer_rows(means: Sequence[np.ndarray | None], digits: int | Sequence[int]) -> list[list[str]]:
    """Return a row per layer: its index, and its value in each mean profile."""
    depth = max((mean.size for mean in means if mean is not None), default=0)
    places = [digits] * len(means) if isinstance(digits, int) else digits
    return [
        [str(i), *(number(None if mean is None or i >= mean.size else float(mean[i]), own)
                   for mean, own in zip(means, places, strict=True))]
        for i in range(depth)
    ]  # fmt: skip
