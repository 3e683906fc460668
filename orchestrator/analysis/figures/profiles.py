"""What the layers are like at the last reading, arm against arm, along depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.common_step import common_step_of_pairs, last_readings
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import Drawing, apart, focus, guide, label, mean_profile, panels, spoken, text
from orchestrator.analysis.figures.traces import EXTRA, Arm, arms_of, runs_and_mean, seeds_and_mean
from orchestrator.analysis.formatting import low_to_high, number, signed
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.analysis.statistics import Interval, interval, mean_of_known
from orchestrator.analysis.symmetry import PAPER_SPREAD
from orchestrator.forensics.reading import profile, spread

UNEVENNESS = {"cv": ("CV of FFN co-magnitude", 2), "saturated_robust": ("positions over the robust threshold", 1)}
RANKS = {"effective_rank.o": "o", "effective_rank.gate": "gate", "effective_rank.down": "down"}
PAPER_BAND = 3.0  # the paper, §5: effective rank stayed within ±3 on every layer
SHARES = 0.1  # of attention's share: the least that is drawn from the panel's bottom to its top


def concentration(c: Comparison) -> Drawing | None:
    """CV of the co-magnitude and saturated positions of every layer, arm against arm."""
    readings = _last(c)
    if not any(profile(r, m) is not None for found in readings.values() for r in found for m in UNEVENNESS):
        return None
    title = "How unevenly each layer uses its FFN positions, last reading"
    figure = panels(1, 2, 300, ["CV of FFN co-magnitude", "positions over the robust threshold"], title)
    columns, means, digits = ["layer"], [], []
    evenness: dict[str, float] = {}
    for arm in arms_of(c):
        for col, (measure, (words, places)) in enumerate(UNEVENNESS.items(), start=1):
            profiles = [p for r in readings[arm.name] if (p := profile(r, measure)) is not None]
            seeds_and_mean(figure, profiles, arm, 1, col)
            columns.append(f"{arm.name}\n{words}")
            means.append(mean := mean_profile(profiles))
            digits.append(places)
            if measure == "cv" and mean is not None:
                evenness[arm.name] = float(mean.mean())
    figure.update_yaxes(rangemode="tozero")
    label(figure, 1, 2, "layer", "CV")
    figure.update_yaxes(title_text="saturated positions", row=1, col=2)
    words = f"Mean CV of FFN co-magnitude over the layers: {spoken(evenness, 2)}."
    table = Section("Means over the seeds, last reading", columns, _by_layer(means, digits))
    return Drawing(figure, title, words, table, ("cv", "co_magnitude", "saturated_robust", "flattening"))


def rank_differences(c: Comparison) -> Drawing | None:
    """Effective rank of each layer, arm minus baseline, with its interval and the paper's band of ±3."""
    arms = [Arm(arm, c.experiment.arms.index(arm), compared=True) for arm in c.compared]
    found = {arm: {m: _differences(arm.name, c.pairs, m) for m in RANKS} for arm in arms}
    if not any(x is not None for of_arm in found.values() for x in of_arm.values()):
        return None
    title = f"Effective rank, difference from {c.baseline}, last reading"
    figure = panels(1, len(RANKS), 300, [f"W_{kind}" for kind in RANKS.values()], title)
    cells: dict[tuple[str, int], list[str]] = {}
    within = layers = 0
    for col, (measure, kind) in enumerate(RANKS.items(), start=1):
        means: list[float] = []
        ends: list[float] = []
        for arm, of_arm in found.items():
            x = of_arm[measure]
            if x is None:
                continue
            mean, bounds = x.mean(axis=0), [interval(column, 0.95) for column in x.T]
            _points(figure, mean, bounds, arm, kind, col)
            means += mean.tolist()
            if arm.shown:
                ends += [end for bound in bounds for end in (bound.low, bound.high) if end is not None]
            for layer, (value, bound) in enumerate(zip(mean, bounds, strict=True)):
                told = cells.setdefault((arm.name, layer), ["–"] * len(RANKS))
                told[col - 1] = f"{signed(value, 1)} ({low_to_high(bound.low, bound.high, 1, plus=True)})"
        within, layers = within + int((np.abs(means) <= PAPER_BAND).sum()), layers + len(means)
        figure.add_hrect(y0=-PAPER_BAND, y1=PAPER_BAND, line_width=0, fillcolor="#888888", opacity=0.18, row=1, col=col)
        guide(figure, 0.0, 1, col)
        focus(figure, means, PAPER_BAND, 1, col, ends=ends)
    label(figure, 1, len(RANKS), "layer", "Δ effective rank (dimensions)")
    words = (
        f"{within} of {layers} mean differences (arms × layers × W_o, W_gate, W_down) lie within ±{PAPER_BAND:.0f} "
        "dimensions, as all of the paper's did."
    )
    rows: list[list[TableCell]] = [[arm, str(layer), *told] for (arm, layer), told in cells.items()]
    columns = ["arm", "layer", *(f"Δ W_{kind}" for kind in RANKS.values())]
    table = Section("Δ effective rank (95 % interval)", columns, rows)
    return Drawing(figure, title, words, table, ("effective_rank", "interval"))


def _points(figure: go.Figure, mean: np.ndarray, bounds: list[Interval], arm: Arm, kind: str, col: int) -> None:
    """A point per layer for the mean over the pairs, with whiskers to the ends of its 95 % interval."""
    paint, _, symbol = arm.line
    above = [0.0 if bound.high is None else bound.high - value for bound, value in zip(bounds, mean, strict=True)]
    below = [0.0 if bound.low is None else value - bound.low for bound, value in zip(bounds, mean, strict=True)]
    figure.add_scatter(
        x=list(range(mean.size)), y=mean, showlegend=col == 1, mode="markers",
        marker={"color": paint, "size": 8, "symbol": symbol}, hovertext=f"{text(arm.name)}, W_{kind}",
        error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.5,
                 "width": 3, "color": paint},
        hovertemplate=f"layer %{{x}}: %{{y:+.2f}}{EXTRA}", row=1, col=col, **arm.common,
    )  # fmt: skip


def _differences(arm: str, pairs: list[Pair], measure: str) -> np.ndarray | None:
    """[pairs, layers], arm minus baseline at each pair's last common reading; None where no pair has it."""
    rows = []
    at = common_step_of_pairs(arm, pairs)
    for pair in at.read:
        if at.step is not None:
            a, b = (profile(cell.readings[at.step], measure) for cell in (pair.a, pair.b))
            if a is not None and b is not None and a.size == b.size:
                rows.append(b - a)
    return np.array(rows) if rows and len({row.size for row in rows}) == 1 else None


def attention_shares(c: Comparison) -> Drawing | None:
    """Attention's share of the energy in every layer, and its spread over the layers at every reading."""
    readings = _last(c)
    if not any(profile(r, "attention_share") is not None for found in readings.values() for r in found):
        return None
    title = "Attention's share of the energy"
    figure = panels(1, 2, 300, ["by layer, last reading", "its spread over the layers (std)"], title)
    means, shares = [], []
    last: dict[str, float] = {}
    top = max(PAPER_SPREAD.values())
    for arm in arms_of(c):
        profiles = [p for r in readings[arm.name] if (p := profile(r, "attention_share")) is not None]
        seeds_and_mean(figure, profiles, arm, 1, 1)
        means.append(mean_profile(profiles))
        shares += [float(share) for p in profiles for share in p]
        spreads = [of_cell for cell in c.cells_of(arm.name) if (of_cell := _spreads(cell))]
        runs_and_mean(figure, spreads, arm, 1, 2)
        top = max(top, *(value for of_cell in spreads for value in of_cell.values()), 0.0)
        end = mean_of_known(of_cell[max(of_cell)] for of_cell in spreads)
        last |= {} if end is None else {arm.name: end}
    for words, value in PAPER_SPREAD.items():
        guide(figure, value, 1, 2, words)
    label(figure, 1, 2, "layer", "attention share")
    apart(figure, shares, SHARES, 1, 1)
    figure.update_xaxes(title_text="step", row=1, col=2)
    figure.update_yaxes(title_text="std over layers", range=[0, 1.15 * top], row=1, col=2)
    said = f"Standard deviation of attention's share over the layers at the last reading: {spoken(last, 3)}."
    if not last:
        said = "A single layer has no spread over the layers: 1 is not enough."
    rows = _by_layer(means, [3] * len(means))
    if last:
        rows.append(["std", *(number(last.get(arm), 3) for arm in c.experiment.arms)])
    table = Section("Attention's share, means over the seeds, last reading", ["layer", *c.experiment.arms], rows)
    return Drawing(figure, title, said, table, ("attention_share", "symmetry"))


def _by_layer(means: list[np.ndarray | None], digits: list[int]) -> list[list[TableCell]]:
    """A row per layer with each of the mean profiles."""
    depth = max((mean.size for mean in means if mean is not None), default=0)
    return [
        [str(i), *(number(None if mean is None or i >= mean.size else float(mean[i]), places)
                   for mean, places in zip(means, digits, strict=True))]
        for i in range(depth)
    ]  # fmt: skip


def _spreads(cell: CellResult) -> dict[int, float]:
    return {step: value for step, reading in cell.readings.items() if (value := spread(reading)) is not None}


def _last(c: Comparison) -> dict[str, list[dict[str, Any]]]:
    return {arm: last_readings(c.cells_of(arm)) for arm in c.experiment.arms}
