"""The specialist budget: where it lies along depth, and how its size and centre move over training."""

from __future__ import annotations

from html import escape

import numpy as np
import plotly.graph_objects as go

from orchestrator.body import centre, profile
from orchestrator.compare.cells import CellResult
from orchestrator.compare.comparison import Comparison
from orchestrator.compare.conservation import REFERENCES
from orchestrator.compare.figures.panels import (
    Drawing,
    label,
    mean_line,
    panels,
    runs_and_mean,
    seeds_and_mean,
    spoken,
    visible,
)
from orchestrator.palette import arm_line

NAMES = {
    "saturated_robust": "above the robust threshold",
    "saturated_fixed": "above the untrained model's",
    "saturated": "above mean + 3 std",
}


def budget_by_depth(c: Comparison) -> Drawing | None:
    """Saturated positions of every layer at the last reading, beside what chance gives."""
    readings = {arm: [x.last_reading for x in c.cells_of(arm) if x.last_reading] for arm in c.experiment.arms}
    shown = [m for m in REFERENCES if any(profile(r, m) is not None for found in readings.values() for r in found)]
    if not shown:
        return None
    titles = [NAMES[measure] for measure in shown]
    figure = panels(1, len(shown), 300, titles, "Specialist budget along depth, last reading")
    texts = []
    for col, measure in enumerate(shown, start=1):
        for index, (arm, found) in enumerate(readings.items()):
            profiles = [p for r in found if (p := profile(r, measure)) is not None]
            seeds_and_mean(figure, profiles, escape(arm), index, 1, col)
            chance = [p for r in found if (p := profile(r, f"{measure}_expected")) is not None]
            mean_line(figure, chance, escape(arm), index, 1, col, chance=True)
            if col == 1 and profiles and len({p.size for p in profiles}) == 1:
                texts.append(f"{arm}, mean saturated positions by layer: {spoken(np.mean(profiles, axis=0), 1)}.")
    figure.update_yaxes(rangemode="tozero")
    terms = ("saturated_robust", "saturated_fixed", "saturated", "saturated_robust_expected")
    return Drawing(label(figure, 1, len(shown), "layer", "saturated FFN positions"), " ".join(texts), terms)


def budget_over_time(c: Comparison) -> Drawing | None:
    """The budget of the whole stack and its centre at every reading, over the robust threshold."""
    arms = {arm: [x for x in c.cells_of(arm) if len(x.readings) > 1] for arm in c.experiment.arms}
    totals = {arm: [_curve(cell, "total") for cell in cells] for arm, cells in arms.items()}
    if not any(curve for curves in totals.values() for curve in curves):
        return None
    figure = panels(1, 2, 280, ["budget (dotted: by chance)", "centre: 0 = first layer, 1 = last"],
                    "Specialist budget over training")  # fmt: skip
    texts = []
    for index, (arm, cells) in enumerate(arms.items()):
        runs_and_mean(figure, [curve for curve in totals[arm] if curve], escape(arm), index, 1, 1)
        centres = [curve for cell in cells if (curve := _curve(cell, "centre"))]
        runs_and_mean(figure, centres, escape(arm), index, 1, 2)
        _chance(figure, [curve for cell in cells if (curve := _curve(cell, "chance"))], escape(arm), index)
        if ends := [curve[max(curve)] for curve in totals[arm] if curve]:
            middle = [curve[max(curve)] for curve in centres]
            where = f", centred at {np.mean(middle):.2f}" if middle else ""
            texts.append(f"{arm} ends with {np.mean(ends):.1f} saturated positions{where}.")
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(range=[0, 1], row=1, col=2)
    label(figure, 1, 2, "step", "saturated FFN positions")
    figure.update_yaxes(title_text="centre of the budget", row=1, col=2)
    return Drawing(figure, " ".join(texts), ("saturated_robust", "centre", "conservation"))


def _curve(cell: CellResult, what: str) -> dict[int, float]:
    """Step → total, centre or count by chance of the robust budget, where it is known."""
    found = {}
    for step, reading in cell.readings.items():
        values = profile(reading, "saturated_robust_expected" if what == "chance" else "saturated_robust")
        value = None if values is None else centre(values) if what == "centre" else float(values.sum())
        if value is not None:
            found[step] = value
    return found


def _chance(figure: go.Figure, curves: list[dict[int, float]], name: str, index: int) -> None:
    """The mean count by chance at the steps that the seeds share."""
    steps = [step for step in (curves[0] if curves else {}) if all(step in curve for curve in curves)]
    if steps:
        figure.add_scatter(
            x=steps, y=[float(np.mean([curve[step] for curve in curves])) for step in steps], mode="lines",
            name=f"{name}, by chance", legendgroup=name, showlegend=False, visible=visible(index),
            line={"color": arm_line(index).colour, "width": 1.5, "dash": "dot"},
            hovertemplate=f"step %{{x}}: %{{y:.1f}}<extra>{name}, by chance</extra>", row=1, col=1,
        )  # fmt: skip
