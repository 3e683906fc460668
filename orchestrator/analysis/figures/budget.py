"""The specialist budget: where it lies along depth, and how its size and centre move over training."""

from __future__ import annotations

from typing import NamedTuple

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
    """Saturated positions of every layer at the last reading, beside what chance gives."""
    readings = {arm: last_readings(c.cells_of(arm)) for arm in c.experiment.arms}
    shown = [measure for measure in REFERENCES if any(profiles_of(found, measure) for found in readings.values())]
    if not shown:
        return None
    title = "Specialist budget along depth, last reading: positions above each threshold"
    figure = panels(1, len(shown), 300, [THRESHOLDS[measure] for measure in shown], title)
    rows: list[list[TableCell]] = []
    peaks: dict[str, float] = {}
    by_chance = False
    for col, measure in enumerate(shown, start=1):
        means: list[np.ndarray | None] = []
        expected: list[np.ndarray | None] = []
        for arm in arms_of(c):
            mean = profile_traces(figure, profiles_of(readings[arm.name], measure), arm, 1, col)
            chance = profiles_of(readings[arm.name], f"{measure}_expected")
            means.append(mean)
            expected.append(mean_profile(chance))
            if expected[-1] is not None:
                chance_line(figure, [dict(enumerate(values)) for values in chance], arm, 1, col, "layer")
                by_chance = True
            if col == 1 and mean is not None and mean.any():
                peaks[arm.name] = float(np.argmax(mean))
        depth = max((mean.size for mean in means if mean is not None), default=0)
        for counts, chances in zip(layer_rows(means, 1, depth), layer_rows(expected, 1, depth), strict=True):
            both = zip(counts[1:], chances[1:], strict=True)
            rows.append([THRESHOLDS[measure], counts[0], *(f"{count} ({chance})" for count, chance in both)])
    if by_chance:
        chance_legend(figure)
    figure.update_yaxes(rangemode="tozero")
    label_axes(figure, 1, len(shown), "layer", "saturated FFN positions")
    text = (
        f"Layer with the most saturated positions ({THRESHOLDS[shown[0]]} threshold, 0 = first): {per_arm(peaks, 0)}."
    )
    if not peaks:
        text = f"0 positions of any layer are above the {THRESHOLDS[shown[0]]} threshold."
    columns = ["threshold", "layer", *c.experiment.arms]
    table = Section("Mean saturated positions (by chance), last reading", columns, rows)
    terms = ("saturated_robust", "saturated_fixed", "saturated", "saturated_robust_expected")
    return Drawing(figure, title, text, table, terms)


class _Course(NamedTuple):
    """One cell's budget over the robust threshold: step → value, where it is known."""

    total: dict[int, float]
    chance: dict[int, float]
    centre: dict[int, float]


def budget_over_time(c: Comparison) -> Drawing | None:
    """The budget of the whole stack and its centre at every reading, over the robust threshold."""
    courses = {arm: [_course(x) for x in c.cells_of(arm) if len(x.readings) > 1] for arm in c.experiment.arms}
    if not any(course.total for found in courses.values() for course in found):
        return None
    title = "Specialist budget over training"
    figure = panels(1, 2, 280, ["budget", "centre: 0 = first layer, 1 = last"], title)
    rows: list[list[TableCell]] = []
    totals: dict[str, float] = {}
    for arm in arms_of(c):
        total, chance, centres = ([x[i] for x in courses[arm.name] if x[i]] for i in range(3))
        run_traces(figure, total, arm, 1, 1)
        run_traces(figure, centres, arm, 1, 2)
        chance_line(figure, chance, arm, 1, 1, "step")
        if total:
            ends = [mean_of_known(curve[max(curve)] for curve in curves) for curves in (total, chance, centres)]
            totals[arm.name] = ends[0] or 0.0
            rows.append([arm.name, *(number(end, digits) for end, digits in zip(ends, (1, 1, 2), strict=True))])
    if any(course.chance for found in courses.values() for course in found):
        chance_legend(figure)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(range=[0, 1], row=1, col=2)
    label_axes(figure, 1, 2, "step", "saturated FFN positions")
    figure.update_yaxes(title_text="centre of the budget", row=1, col=2)
    text = f"Saturated positions of the whole stack at the last reading, mean over seeds: {per_arm(totals, 1)}."
    table = Section("Budget at the last reading", ["arm", "budget", "by chance", "centre"], rows)
    return Drawing(figure, title, text, table, ("saturated_robust", "centre", "conservation"))


def _course(cell: CellResult) -> _Course:
    found = _Course({}, {}, {})
    for step, reading in cell.readings.items():
        budget, expected = (profile(reading, m) for m in ("saturated_robust", "saturated_robust_expected"))
        if budget is not None:
            found.total[step] = float(budget.sum())
            if (middle := centre(budget)) is not None:
                found.centre[step] = middle
        if expected is not None:
            found.chance[step] = float(expected.sum())
    return found
