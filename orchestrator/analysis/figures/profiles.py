"""Draw profiles of the layers along depth at the last reading, arm against arm."""

from __future__ import annotations

from collections import Counter

import numpy as np
import plotly.graph_objects as go

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.common_step import common_step_of_pairs, last_readings
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import (
    Drawing,
    frame_around_zero,
    frame_shares,
    guide_line,
    label_axes,
    layer_rows,
    panels,
    per_arm,
)
from orchestrator.analysis.figures.traces import DrawnArm, arms_of, profile_traces, profiles_of, run_traces
from orchestrator.analysis.formatting import low_to_high, number
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.analysis.statistics import (
    Interval,
    interval,
    mean_of_known,
    p_outside,
    p_within,
)
from orchestrator.analysis.symmetry import PAPER_SPREAD
from orchestrator.common.formatting import signed
from orchestrator.experiments.decision import ALPHA, FEWEST_PAIRS
from orchestrator.forensics.reading import profile, spread

CONCENTRATION = {"cv": ("CV of FFN co-magnitude", 2), "saturated_robust": ("positions over the robust threshold", 1)}
RANKS = {"effective_rank.o": "o", "effective_rank.gate": "gate", "effective_rank.down": "down"}
INSIDE, OUTSIDE = "≈", "≠"
PAPER_BAND = 3.0  # the paper, §5: effective rank differed by at most 3 in every layer
SHARES = 0.1  # least range of the axis of attention's share


def concentration(c: Comparison) -> Drawing | None:
    """Draw the CV of co-magnitude and the saturated positions of every layer."""
    readings = {arm: last_readings(c.cells_of(arm)) for arm in c.experiment.arms}
    if not any(profiles_of(found, measure) for found in readings.values() for measure in CONCENTRATION):
        return None
    title = "Concentration of each layer's FFN positions, last reading"
    figure = panels(1, 2, 300, [words for words, _ in CONCENTRATION.values()], title)
    columns, means, digits = ["layer"], [], []
    cv: dict[str, float] = {}
    for arm in arms_of(c):
        for col, (measure, (words, places)) in enumerate(CONCENTRATION.items(), start=1):
            mean = profile_traces(figure, profiles_of(readings[arm.name], measure), arm, 1, col)
            columns.append(f"{arm.name}\n{words}")
            means.append(mean)
            digits.append(places)
            if measure == "cv" and mean is not None:
                cv[arm.name] = float(mean.mean())
    figure.update_yaxes(rangemode="tozero")
    label_axes(figure, 1, 2, "layer", "CV")
    figure.update_yaxes(title_text="saturated positions", row=1, col=2)
    text = f"Mean CV of FFN co-magnitude over the layers: {per_arm(cv, 2)}."
    table = Section("Means over the seeds, last reading", columns, layer_rows(means, digits))
    return Drawing(figure, title, text, table, ("cv", "co_magnitude", "saturated_robust", "flattening"))


def rank_differences(c: Comparison) -> Drawing | None:
    """Draw effective rank of each layer, arm minus baseline, with its interval and the paper's band of ±3."""
    arms = [DrawnArm(arm, c.experiment.arms.index(arm), compared=True) for arm in c.compared]
    found = {arm: {m: _differences(arm.name, c.pairs, m) for m in RANKS} for arm in arms}
    if not any(x is not None for of_arm in found.values() for x in of_arm.values()):
        return None
    title = f"Effective rank, difference from {c.baseline}, last reading"
    figure = panels(1, len(RANKS), 300, [f"W_{kind}" for kind in RANKS.values()], title)
    cells: dict[tuple[str, int], list[str]] = {}
    shown = Counter[str]()
    for col, (measure, kind) in enumerate(RANKS.items(), start=1):
        means: list[float] = []
        ends: list[float] = []
        for arm, of_arm in found.items():
            x = of_arm[measure]
            if x is None:
                continue
            mean, bounds = x.mean(axis=0), [interval(column, 0.95) for column in x.T]
            _whiskers(figure, mean, bounds, arm, kind, col)
            means += mean.tolist()
            if arm.shown:
                ends += [end for bound in bounds for end in (bound.low, bound.high) if end is not None]
            for layer, (value, bound) in enumerate(zip(mean, bounds, strict=True)):
                row = cells.setdefault((arm.name, layer), ["–"] * len(RANKS))
                found_here = _beside_the_band(x[:, layer], bound)
                shown[found_here] += 1
                row[col - 1] = (
                    f"{signed(value, 1)} ({low_to_high(bound.low, bound.high, 1, plus=True)}) {found_here}".rstrip()
                )
        figure.add_hrect(y0=-PAPER_BAND, y1=PAPER_BAND, line_width=0, fillcolor="#888888", opacity=0.18, row=1, col=col)
        guide_line(figure, 0.0, 1, col)
        frame_around_zero(figure, means, PAPER_BAND, 1, col, ends=ends)
    label_axes(figure, 1, len(RANKS), "layer", "Δ effective rank (dimensions)")
    text = (
        f"Of {shown.total()} differences (arms × layers × W_o, W_gate, W_down) {shown[INSIDE]} are shown to lie within "
        f"±{PAPER_BAND:.0f} dimensions ({INSIDE}), {shown[OUTSIDE]} beyond ({OUTSIDE}), and {shown['']} are not "
        f"decided: a test each, p ≤ {ALPHA}, which needs {FEWEST_PAIRS} pairs. In the paper all lie within."
    )
    rows: list[list[TableCell]] = [[arm, str(layer), *row] for (arm, layer), row in cells.items()]
    columns = ["arm", "layer", *(f"Δ W_{kind}" for kind in RANKS.values())]
    table = Section("Δ effective rank (95 % interval)", columns, rows)
    return Drawing(figure, title, text, table, ("effective_rank", "interval"))


def _beside_the_band(x: np.ndarray, within: Interval) -> str:
    """Return `INSIDE` or `OUTSIDE` where the differences [n] of a layer are shown to lie there, else nothing."""
    if within.low is None or within.high is None:
        return ""
    inside, outside = (test(x, -PAPER_BAND, PAPER_BAND) for test in (p_within, p_outside))
    if inside is not None and inside <= ALPHA and within.low > -PAPER_BAND and within.high < PAPER_BAND:
        return INSIDE
    apart = within.low > PAPER_BAND or within.high < -PAPER_BAND
    return OUTSIDE if outside is not None and outside <= ALPHA and apart else ""


def _whiskers(figure: go.Figure, mean: np.ndarray, bounds: list[Interval], arm: DrawnArm, kind: str, col: int) -> None:
    """Draw a point per layer for the mean over the pairs, with whiskers to the ends of its 95 % interval."""
    paint, _, symbol = arm.line
    above = [0.0 if bound.high is None else bound.high - value for bound, value in zip(bounds, mean, strict=True)]
    below = [0.0 if bound.low is None else value - bound.low for bound, value in zip(bounds, mean, strict=True)]
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.5, "width": 3}
    arm.draw(
        figure, 1, col, "layer %{x}: %{y:+.2f}", f", W_{kind}", x=list(range(mean.size)), y=mean, mode="markers",
        showlegend=col == 1, marker={"color": paint, "size": 8, "symbol": symbol}, error_y={**bars, "color": paint},
    )  # fmt: skip


def _differences(arm: str, pairs: list[Pair], measure: str) -> np.ndarray | None:
    """Return arm minus baseline at the pairs' common step, [pairs, layers]; None where no pair has the measure."""
    rows = []
    at = common_step_of_pairs(arm, pairs)
    for pair in at.read:
        if at.step is not None:
            a, b = (profile(cell.readings[at.step], measure) for cell in pair.cells)
            if a is not None and b is not None and a.size == b.size:
                rows.append(b - a)
    return np.array(rows) if rows and len({row.size for row in rows}) == 1 else None


def attention_shares(c: Comparison) -> Drawing | None:
    """Draw attention's share of the energy in every layer, and its spread over the layers at every reading."""
    readings = {arm: last_readings(c.cells_of(arm)) for arm in c.experiment.arms}
    profiles = {arm: profiles_of(found, "attention_share") for arm, found in readings.items()}
    if not any(profiles.values()):
        return None
    title = "Attention's share of the energy"
    figure = panels(1, 2, 300, ["by layer, last reading", "its spread over the layers (std)"], title)
    means = []
    last: dict[str, float] = {}
    top = max(PAPER_SPREAD.values())
    for arm in arms_of(c):
        means.append(profile_traces(figure, profiles[arm.name], arm, 1, 1))
        spreads = [of_cell for cell in c.cells_of(arm.name) if (of_cell := _spreads(cell))]
        run_traces(figure, spreads, arm, 1, 2)
        top = max(top, *(value for of_cell in spreads for value in of_cell.values()), 0.0)
        end = mean_of_known(of_cell[max(of_cell)] for of_cell in spreads)
        last |= {} if end is None else {arm.name: end}
    for words, value in PAPER_SPREAD.items():
        guide_line(figure, value, 1, 2, words)
    label_axes(figure, 1, 2, "layer", "attention share")
    shares = [float(share) for of_arm in profiles.values() for of_seed in of_arm for share in of_seed]
    frame_shares(figure, shares, SHARES, 1, 1)
    figure.update_xaxes(title_text="step", row=1, col=2)
    figure.update_yaxes(title_text="std over layers", range=[0, 1.15 * top], row=1, col=2)
    text = f"Standard deviation of attention's share over the layers at the last reading: {per_arm(last, 3)}."
    if not last:
        text = "With 1 layer there is no spread over the layers."
    rows = layer_rows(means, 3)
    if last:
        rows.append(["std", *(number(last.get(arm), 3) for arm in c.experiment.arms)])
    table = Section("Attention's share, means over the seeds, last reading", ["layer", *c.experiment.arms], rows)
    return Drawing(figure, title, text, table, ("attention_share", "symmetry"))


def _spreads(cell: CellResult) -> dict[int, float]:
    """Return step → spread of attention's share, where it is known."""
    return {step: value for step, reading in cell.readings.items() if (value := spread(reading)) is not None}
