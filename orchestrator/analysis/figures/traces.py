"""The marks that every figure shares: a line per arm, dots and faint lines per seed, bands, and what chance gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import scipy

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import SHOWN_ARMS, mean_profile, short, text
from orchestrator.common.palette import Line, arm_line

SYMBOLS = 8  # at most, along a line over the steps
CHANCE = "dotted: by chance"
EXTRA = "<extra>%{fullData.hovertext}</extra>"  # a name inside a template would itself be taken for one


@dataclass(frozen=True)
class Arm:
    """An arm as it is drawn: by its place among the arms."""

    name: str
    index: int
    compared: bool = False  # drawn without its baseline, which takes no place of those shown

    @property
    def line(self) -> Line:
        return arm_line(self.index)

    @property
    def shown(self) -> bool:
        """Whether it is drawn before anything is clicked."""
        return self.index - self.compared < SHOWN_ARMS

    @property
    def common(self) -> dict[str, Any]:
        """What all of its traces share: a click on its name in the legend hides them together."""
        visible = True if self.shown else "legendonly"
        return {"name": short(self.name), "legendgroup": text(self.name), "visible": visible}


def arms_of(c: Comparison) -> list[Arm]:
    return [Arm(name, index) for index, name in enumerate(c.experiment.arms)]


class Band(NamedTuple):
    """Runs at the steps they share."""

    steps: list[int]
    mean: np.ndarray  # [steps]
    half: np.ndarray | None  # [steps], of the pointwise 95 % t interval; null for one run

    @property
    def ends(self) -> list[float]:
        return [] if self.half is None else [*(self.mean - self.half), *(self.mean + self.half)]


def band(runs: Sequence[Mapping[int, float]]) -> Band:
    """The mean of runs (step → value) and its interval."""
    steps = [step for step in (runs[0] if runs else {}) if all(step in run for run in runs)]
    values = np.array([[run[step] for step in steps] for run in runs])  # [n, steps]
    if not steps:
        return Band([], np.empty(0), None)
    several = len(runs) > 1
    half = scipy.stats.t.ppf(0.975, len(runs) - 1) * scipy.stats.sem(values, axis=0) if several else None
    return Band(steps, values.mean(axis=0), half)


def seeds_and_mean(figure: go.Figure, profiles: list[np.ndarray], arm: Arm, row: int, col: int) -> None:
    """Dots for the seeds' values per layer, a line for their mean, where they are of one depth."""
    paint, dash, symbol = arm.line
    for values in profiles if len(profiles) > 1 else []:
        figure.add_scatter(
            x=list(range(values.size)), y=values, mode="markers", opacity=0.45, showlegend=False,
            marker={"color": paint, "size": 6, "symbol": symbol}, hovertext=text(arm.name),
            hovertemplate=f"layer %{{x}}: %{{y:.4g}}{EXTRA}", row=row, col=col, **arm.common,
        )  # fmt: skip
    mean = mean_profile(profiles)
    if mean is not None:
        figure.add_scatter(
            x=list(range(mean.size)), y=mean, mode="lines+markers", showlegend=(row, col) == (1, 1),
            line={"color": paint, "width": 2, "dash": dash}, marker={"symbol": symbol, "size": 7, "color": paint},
            hovertext=f"{text(arm.name)}, mean", hovertemplate=f"layer %{{x}}: %{{y:.4g}}{EXTRA}", row=row, col=col,
            **arm.common,
        )  # fmt: skip


def runs_and_mean(
    figure: go.Figure, runs: list[dict[int, float]], arm: Arm, row: int, col: int, *, interval: bool = False
) -> None:
    """A faint line per seed over the steps, a strong one for their mean at the steps they share, and its interval."""
    paint, dash, symbol = arm.line
    for run in runs if len(runs) > 1 else []:
        figure.add_scatter(
            x=list(run), y=list(run.values()), mode="lines", opacity=0.35, showlegend=False,
            line={"color": paint, "width": 1}, hoverinfo="skip", row=row, col=col, **arm.common,
        )  # fmt: skip
    steps, mean, half = band(runs)
    if interval and half is not None:
        figure.add_scatter(
            x=[*steps, *steps[::-1]], y=[*(mean + half), *(mean - half)[::-1]], fill="toself", mode="none",
            fillcolor=paint, opacity=0.22, showlegend=False, hoverinfo="skip", row=row, col=col, **arm.common,
        )  # fmt: skip
    if steps:
        figure.add_scatter(
            x=steps, y=mean, mode="lines+markers", showlegend=(row, col) == (1, 1),
            line={"color": paint, "width": 2, "dash": dash},
            marker={"symbol": symbol, "size": 7, "color": paint, "maxdisplayed": SYMBOLS},
            hovertext=f"{text(arm.name)}, mean of {len(runs)}", hovertemplate=f"step %{{x}}: %{{y:.4f}}{EXTRA}",
            row=row, col=col, **arm.common,
        )  # fmt: skip


def chance_line(
    figure: go.Figure, curves: Sequence[Mapping[int, float]], arm: Arm, row: int, col: int, at: str
) -> None:
    """The mean of what chance gives, dotted in the arm's colour; `at` names the curves' argument: layer or step."""
    x, mean, _ = band(curves)
    if x:
        figure.add_scatter(
            x=x, y=mean, mode="lines", showlegend=False, line={"color": arm.line.colour, "width": 1.5, "dash": "dot"},
            hovertext=f"{text(arm.name)}, by chance", hovertemplate=f"{at} %{{x}}: %{{y:.1f}}{EXTRA}",
            row=row, col=col, **arm.common,
        )  # fmt: skip


def chance_entry(figure: go.Figure) -> None:
    """One entry of the legend for the dotted lines of all arms."""
    figure.add_scatter(
        x=[None], y=[None], mode="lines", name=CHANCE, showlegend=True, hoverinfo="skip",
        line={"color": "#888888", "width": 1.5, "dash": "dot"}, row=1, col=1,
    )  # fmt: skip
