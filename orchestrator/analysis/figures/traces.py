"""Add the traces that figures share: lines per arm, dots and faint lines per seed, bands, values by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import scipy

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import SHOWN_ARMS, escaped, short
from orchestrator.common.palette import Line, arm_line
from orchestrator.forensics.reading import Reading, profile

SYMBOLS = 8  # most symbols along a line over the steps
CHANCE = "dotted: by chance"
NAME = "<extra>%{fullData.hovertext}</extra>"  # a name in the template itself would be read as a template


@dataclass(frozen=True)
class DrawnArm:
    """An arm and its style, which follows from its place among the arms."""

    name: str
    index: int
    compared: bool = False  # true in figures that leave out the baseline

    @property
    def line(self) -> Line:
        return arm_line(self.index)

    @property
    def shown(self) -> bool:
        """True where it is drawn without a click on its name in the legend."""
        return self.index - self.compared < SHOWN_ARMS

    @property
    def common(self) -> dict[str, Any]:
        """Options of all of its traces, which a click on its name in the legend hides together."""
        visible = True if self.shown else "legendonly"
        return {"name": short(self.name), "legendgroup": escaped(self.name), "visible": visible}

    def draw(self, figure: go.Figure, row: int, col: int, hover: str = "", what: str = "", **options: Any) -> None:
        """Add a trace with the template `hover`, without hover where that is empty; `what` follows the arm's name."""
        words = {"hovertext": escaped(self.name) + what, "hovertemplate": f"{hover}{NAME}"}
        figure.add_scatter(**(words if hover else {"hoverinfo": "skip"}), row=row, col=col, **self.common, **options)


def arms_of(c: Comparison) -> list[DrawnArm]:
    return [DrawnArm(name, index) for index, name in enumerate(c.experiment.arms)]


class Band(NamedTuple):
    """The mean of runs at the steps that they share, with its interval."""

    steps: list[int]
    mean: np.ndarray  # [steps]
    half: np.ndarray | None  # [steps], of the pointwise 95 % t interval; null for one run

    @property
    def ends(self) -> list[float]:
        return [] if self.half is None else [*(self.mean - self.half), *(self.mean + self.half)]


def band(runs: Sequence[Mapping[int, float]]) -> Band:
    """Return the band of runs, each step → value."""
    steps = [step for step in (runs[0] if runs else {}) if all(step in run for run in runs)]
    values = np.array([[run[step] for step in steps] for run in runs])  # [n, steps]
    if not steps:
        return Band([], np.empty(0), None)
    several = len(runs) > 1
    half = scipy.stats.t.ppf(0.975, len(runs) - 1) * scipy.stats.sem(values, axis=0) if several else None
    return Band(steps, values.mean(axis=0), half)


def profiles_of(readings: Sequence[Reading], measure: str) -> list[np.ndarray]:
    """Return the profile [L] of a measure in every reading that has it."""
    return [values for reading in readings if (values := profile(reading, measure)) is not None]


def mean_profile(profiles: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the mean of profiles [L]; null where there are none or depths differ."""
    return np.mean(profiles, axis=0) if len({values.size for values in profiles}) == 1 else None


def profile_traces(
    figure: go.Figure, profiles: list[np.ndarray], arm: DrawnArm, row: int, col: int
) -> np.ndarray | None:
    """Draw a dot per seed and layer and a line for their mean, and return it as `mean_profile` does."""
    paint, _, symbol = arm.line
    for values in profiles if len(profiles) > 1 else []:
        arm.draw(
            figure, row, col, "layer %{x}: %{y:.4g}", x=list(range(values.size)), y=values, mode="markers",
            opacity=0.45, showlegend=False, marker={"color": paint, "size": 6, "symbol": symbol},
        )  # fmt: skip
    mean = mean_profile(profiles)
    if mean is not None:
        _mean_line(figure, list(range(mean.size)), mean, arm, row, col, "mean", "layer %{x}: %{y:.4g}")
    return mean


def run_traces(
    figure: go.Figure, runs: list[dict[int, float]], arm: DrawnArm, row: int, col: int, *, interval: bool = False
) -> None:
    """Draw a faint line per seed, a strong one for their mean at the steps that they share, and its interval."""
    for run in runs if len(runs) > 1 else []:
        arm.draw(
            figure, row, col, x=list(run), y=list(run.values()), mode="lines", opacity=0.35, showlegend=False,
            line={"color": arm.line.colour, "width": 1},
        )  # fmt: skip
    steps, mean, half = band(runs)
    if interval and half is not None:
        arm.draw(
            figure, row, col, x=[*steps, *steps[::-1]], y=[*(mean + half), *(mean - half)[::-1]], fill="toself",
            mode="none", fillcolor=arm.line.colour, opacity=0.22, showlegend=False,
        )  # fmt: skip
    if steps:
        words = f"mean of {len(runs)}"
        _mean_line(figure, steps, mean, arm, row, col, words, "step %{x}: %{y:.4f}", maxdisplayed=SYMBOLS)


def _mean_line(
    figure: go.Figure, x: list[int], y: np.ndarray, arm: DrawnArm, row: int, col: int, what: str, hover: str,
    **marker: Any,
) -> None:  # fmt: skip
    paint, dash, symbol = arm.line
    arm.draw(
        figure, row, col, hover, f", {what}", x=x, y=y, mode="lines+markers", showlegend=(row, col) == (1, 1),
        line={"color": paint, "width": 2, "dash": dash}, marker={"symbol": symbol, "size": 7, "color": paint, **marker},
    )  # fmt: skip


def chance_line(
    figure: go.Figure, curves: Sequence[Mapping[int, float]], arm: DrawnArm, row: int, col: int, at: str
) -> None:
    """Draw the mean value by chance, dotted in the arm's colour; `at` names the x axis: layer or step."""
    x, mean, _ = band(curves)
    if x:
        arm.draw(
            figure, row, col, f"{at} %{{x}}: %{{y:.1f}}", ", by chance", x=x, y=mean, mode="lines", showlegend=False,
            line={"color": arm.line.colour, "width": 1.5, "dash": "dot"},
        )  # fmt: skip


def chance_legend(figure: go.Figure) -> None:
    """Add an entry to the legend where the figure has dotted lines, which are those of `chance_line`."""
    if any(trace.line.dash == "dot" for trace in figure.data):
        figure.add_scatter(
            x=[None], y=[None], mode="lines", name=CHANCE, showlegend=True, hoverinfo="skip",
            line={"color": "#888888", "width": 1.5, "dash": "dot"}, row=1, col=1,
        )  # fmt: skip
