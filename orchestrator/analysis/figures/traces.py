"""The traces that figures share: a line per arm, dots and faint lines per seed, bands, and what chance gives."""

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

SYMBOLS = 8  # at most, along a line over the steps
CHANCE = "dotted: by chance"
NAME = "<extra>%{fullData.hovertext}</extra>"  # of the trace; plotly would read a name in the template as a template


@dataclass(frozen=True)
class DrawnArm:
    """An arm and its style in every figure, which follows from its place among the arms."""

    name: str
    index: int
    compared: bool = False  # drawn without its baseline, which then is none of the arms shown

    @property
    def line(self) -> Line:
        return arm_line(self.index)

    @property
    def shown(self) -> bool:
        """True where it is drawn before its name in the legend is clicked."""
        return self.index - self.compared < SHOWN_ARMS

    @property
    def common(self) -> dict[str, Any]:
        """What all of its traces share: a click on its name in the legend hides them together."""
        visible = True if self.shown else "legendonly"
        return {"name": short(self.name), "legendgroup": escaped(self.name), "visible": visible}


def arms_of(c: Comparison) -> list[DrawnArm]:
    return [DrawnArm(name, index) for index, name in enumerate(c.experiment.arms)]


class Band(NamedTuple):
    """The mean of runs at the steps that all have, with its interval."""

    steps: list[int]
    mean: np.ndarray  # [steps]
    half: np.ndarray | None  # [steps], of the pointwise 95 % t interval; null for one run

    @property
    def ends(self) -> list[float]:
        return [] if self.half is None else [*(self.mean - self.half), *(self.mean + self.half)]


def band(runs: Sequence[Mapping[int, float]]) -> Band:
    """The band of runs, each step → value."""
    steps = [step for step in (runs[0] if runs else {}) if all(step in run for run in runs)]
    values = np.array([[run[step] for step in steps] for run in runs])  # [n, steps]
    if not steps:
        return Band([], np.empty(0), None)
    several = len(runs) > 1
    half = scipy.stats.t.ppf(0.975, len(runs) - 1) * scipy.stats.sem(values, axis=0) if several else None
    return Band(steps, values.mean(axis=0), half)


def profiles_of(readings: Sequence[Reading], measure: str) -> list[np.ndarray]:
    """The profile [L] of a measure in every reading that has it."""
    return [values for reading in readings if (values := profile(reading, measure)) is not None]


def mean_profile(profiles: Sequence[np.ndarray]) -> np.ndarray | None:
    """The mean of profiles [L] of one depth; null where there are none or depths differ."""
    return np.mean(profiles, axis=0) if len({values.size for values in profiles}) == 1 else None


def profile_traces(
    figure: go.Figure, profiles: list[np.ndarray], arm: DrawnArm, row: int, col: int
) -> np.ndarray | None:
    """Dots for each seed's value per layer, a line for their mean, which it returns: see `mean_profile`."""
    paint, _, symbol = arm.line
    for values in profiles if len(profiles) > 1 else []:
        figure.add_scatter(
            x=list(range(values.size)), y=values, mode="markers", opacity=0.45, showlegend=False,
            marker={"color": paint, "size": 6, "symbol": symbol}, hovertext=escaped(arm.name),
            hovertemplate=f"layer %{{x}}: %{{y:.4g}}{NAME}", row=row, col=col, **arm.common,
        )  # fmt: skip
    mean = mean_profile(profiles)
    if mean is not None:
        _mean_line(figure, list(range(mean.size)), mean, arm, row, col, "mean", "layer %{x}: %{y:.4g}")
    return mean


def run_traces(
    figure: go.Figure, runs: list[dict[int, float]], arm: DrawnArm, row: int, col: int, *, interval: bool = False
) -> None:
    """A faint line per seed over the steps, a strong one for their mean at the steps they share, and its interval."""
    for run in runs if len(runs) > 1 else []:
        figure.add_scatter(
            x=list(run), y=list(run.values()), mode="lines", opacity=0.35, showlegend=False,
            line={"color": arm.line.colour, "width": 1}, hoverinfo="skip", row=row, col=col, **arm.common,
        )  # fmt: skip
    steps, mean, half = band(runs)
    if interval and half is not None:
        figure.add_scatter(
            x=[*steps, *steps[::-1]], y=[*(mean + half), *(mean - half)[::-1]], fill="toself", mode="none",
            fillcolor=arm.line.colour, opacity=0.22, showlegend=False, hoverinfo="skip", row=row, col=col,
            **arm.common,
        )  # fmt: skip
    if steps:
        template = "step %{x}: %{y:.4f}"
        _mean_line(figure, steps, mean, arm, row, col, f"mean of {len(runs)}", template, maxdisplayed=SYMBOLS)


def _mean_line(
    figure: go.Figure, x: list[int], y: np.ndarray, arm: DrawnArm, row: int, col: int, what: str, hover: str,
    **marker: Any,
) -> None:  # fmt: skip
    paint, dash, symbol = arm.line
    figure.add_scatter(
        x=x, y=y, mode="lines+markers", showlegend=(row, col) == (1, 1),
        line={"color": paint, "width": 2, "dash": dash}, marker={"symbol": symbol, "size": 7, "color": paint, **marker},
        hovertext=f"{escaped(arm.name)}, {what}", hovertemplate=f"{hover}{NAME}", row=row, col=col, **arm.common,
    )  # fmt: skip


def chance_line(
    figure: go.Figure, curves: Sequence[Mapping[int, float]], arm: DrawnArm, row: int, col: int, at: str
) -> None:
    """The mean of what chance gives, dotted in the arm's colour; `at` names the x axis: layer or step."""
    x, mean, _ = band(curves)
    if x:
        figure.add_scatter(
            x=x, y=mean, mode="lines", showlegend=False, line={"color": arm.line.colour, "width": 1.5, "dash": "dot"},
            hovertext=f"{escaped(arm.name)}, by chance", hovertemplate=f"{at} %{{x}}: %{{y:.1f}}{NAME}",
            row=row, col=col, **arm.common,
        )  # fmt: skip


def chance_legend(figure: go.Figure) -> None:
    """One entry of the legend for the dotted lines of all arms."""
    figure.add_scatter(
        x=[None], y=[None], mode="lines", name=CHANCE, showlegend=True, hoverinfo="skip",
        line={"color": "#888888", "width": 1.5, "dash": "dot"}, row=1, col=1,
    )  # fmt: skip
