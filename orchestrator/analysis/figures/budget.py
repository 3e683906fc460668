"""Draw the specialist budget along depth, and its size and centre over training."""

from __future__ import annotations

import numpy as np

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.common_step import last_readings
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.conservation import REFERENCES, THRESHOLDS
from orchestrator.analysis.figures.panels import Drawing, label_axes, layer_rows, panels, per_arm
from orchestrator.analysis.figures.traces import (
    arms_of,
    chance_legend,
    chance_line,
    mean_profile,
    profile_traces,
    profiles_of,
    run_traces,
)
from orchestrator.analysis.formatting import number
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.analysis.statistics import mean_of_known
from orchestrator.forensics.reading import centre, profile


def budget_by_depth(c: Comparison) -> Drawing | None:
    """Draw the saturated positions of every layer at the last reading, and the count by chance."""
    readings = {arm: last_readings(c.cells_of(arm)) for arm in c.experiment.arms}
    shown = [measure for measure in REFERENCES if any(profiles_of(found, measure) for found in readings.values())]
    if not shown:
        return None
    title = "Specialist budget along depth, last reading: positions above each threshold"
    figure = panels(1, len(shown), 300, [THRESHOLDS[measure] for measure in shown], title)
    rows: list[list[TableCell]] = []
    peaks: dict[str, float] = {}
    for col, measure in enumerate(shown, start=1):
        means, expected = [], []
        for arm in arms_of(c):
            mean = profile_traces(figure, profiles_of(readings[arm.name], measure), arm, 1, col)
            chance = profiles_of(readings[arm.name], f"{measure}_expected")
            chance_line(figure, [dict(enumerate(values)) for values in chance], arm, 1, col, "layer")
            means.append(mean)
            expected.append(mean_profile(chance))
            if col == 1 and mean is not None and mean.any():
                peaks[arm.name] = float(np.argmax(mean))
        for layer, *counts in layer_rows([*means, *expected], 1):
            both = zip(counts[: len(means)], counts[len(means) :], strict=True)
            rows.append([THRESHOLDS[measure], layer, *(f"{count} ({by_chance})" for count, by_chance in both)])
    chance_legend(figure)
    figure.update_yaxes(rangemode="tozero")
    label_axes(figure, 1, len(shown), "layer", "saturated FFN positions")
    text = f"Layer with the most positions above the {THRESHOLDS[shown[0]]} threshold (0 = first): {per_arm(peaks, 0)}."
    if not peaks:
        text = f"Every layer has 0 positions above the {THRESHOLDS[shown[0]]} threshold."
    columns = ["threshold", "layer", *c.experiment.arms]
    table = Section("Mean saturated positions (by chance), last reading", columns, rows)
    terms = ("saturated_robust", "saturated_fixed", "saturated", "saturated_robust_expected")
    return Drawing(figure, title, text, table, terms)


def budget_over_time(c: Comparison) -> Drawing | None:
    """Draw the budget of the whole stack and its centre at every reading, over the robust threshold."""
    curves = {arm: [_curves(x) for x in c.cells_of(arm) if len(x.readings) > 1] for arm in c.experiment.arms}
    if not any(total for found in curves.values() for total, _, _ in found):
        return None
    title = "Specialist budget over training"
    figure = panels(1, 2, 280, ["budget", "centre: 0 = first layer, 1 = last"], title)
    rows: list[list[TableCell]] = []
    totals: dict[str, float] = {}
    for arm in arms_of(c):
        total, chance, centres = ([x[i] for x in curves[arm.name] if x[i]] for i in range(3))
        run_traces(figure, total, arm, 1, 1)
        run_traces(figure, centres, arm, 1, 2)
        chance_line(figure, chance, arm, 1, 1, "step")
        if total:
            ends = [mean_of_known(run[max(run)] for run in runs) for runs in (total, chance, centres)]
            totals[arm.name] = ends[0] or 0.0
            rows.append([arm.name, *(number(end, digits) for end, digits in zip(ends, (1, 1, 2), strict=True))])
    chance_legend(figure)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(range=[0, 1], row=1, col=2)
    label_axes(figure, 1, 2, "step", "saturated FFN positions")
    figure.update_yaxes(title_text="centre of the budget", row=1, col=2)
    text = f"Saturated positions of the whole stack at the last reading, mean over seeds: {per_arm(totals, 1)}."
    table = Section("Budget at the last reading", ["arm", "budget", "by chance", "centre"], rows)
    return Drawing(figure, title, text, table, ("saturated_robust", "centre", "conservation"))


def _curves(cell: CellResult) -> tuple[dict[int, float], dict[int, float], dict[int, float]]:
    """Return step → budget, count by chance and centre, each where it is known."""
    total, chance, centres = {}, {}, {}
    for step, reading in cell.readings.items():
        if (budget := profile(reading, "saturated_robust")) is not None:
            total[step] = float(budget.sum())
            if (middle := centre(budget)) is not None:
                centres[step] = middle
        if (expected := profile(reading, "saturated_robust_expected")) is not None:
            chance[step] = float(expected.sum())
    return total, chance, centres
