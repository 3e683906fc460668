"""What the layers are like at the last reading, arm against arm, along depth."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from orchestrator.body import profile
from orchestrator.compare.cells import CellResult
from orchestrator.compare.comparison import Comparison
from orchestrator.compare.figures.panels import (
    Drawing,
    focus,
    guide,
    label,
    panels,
    runs_and_mean,
    seeds_and_mean,
    spoken,
    visible,
)
from orchestrator.compare.pairs import Pair
from orchestrator.compare.statistics import interval
from orchestrator.palette import arm_line

RANKS = {"effective_rank.o": "o", "effective_rank.gate": "gate", "effective_rank.down": "down"}
PAPER_BAND = 3.0  # the paper, §5: effective rank stayed within ±3 on every layer
PAPER_SPREAD = {"the paper's vanilla model": 0.014, "its reward-driven one": 0.13}  # §7


def concentration(c: Comparison) -> Drawing | None:
    """CV of the co-magnitude and saturated positions of every layer, arm against arm."""
    readings = _last(c)
    measures = {"cv": "CV of FFN co-magnitude", "saturated_robust": "positions over the robust threshold"}
    if not any(profile(r, m) is not None for found in readings.values() for r in found for m in measures):
        return None
    figure = panels(1, 2, 300, list(measures.values()), "How unevenly each layer uses its FFN positions, last reading")
    texts = []
    for index, (arm, found) in enumerate(readings.items()):
        for col, measure in enumerate(measures, start=1):
            profiles = [p for r in found if (p := profile(r, measure)) is not None]
            seeds_and_mean(figure, profiles, escape(arm), index, 1, col)
            if profiles and len({p.size for p in profiles}) == 1:
                texts.append(f"{arm}, {measures[measure]} by layer: {spoken(np.mean(profiles, axis=0))}.")
    figure.update_yaxes(rangemode="tozero")
    label(figure, 1, 2, "layer", "CV")
    figure.update_yaxes(title_text="saturated positions", row=1, col=2)
    return Drawing(figure, " ".join(texts), ("cv", "co_magnitude", "saturated_robust", "flattening"))


def rank_differences(c: Comparison) -> Drawing | None:
    """Effective rank of each layer, arm minus baseline, with its interval and the paper's band of ±3."""
    found = {arm: {m: _differences([p for p in c.pairs if p.arm == arm], m) for m in RANKS} for arm in c.compared}
    if not any(x is not None for of_arm in found.values() for x in of_arm.values()):
        return None
    titles = [f"W_{kind}" for kind in RANKS.values()]
    figure = panels(1, len(RANKS), 300, titles, f"Effective rank, difference from {escape(c.baseline)}, last reading")
    texts = []
    for col, (measure, kind) in enumerate(RANKS.items(), start=1):
        means: list[float] = []
        for arm, of_arm in found.items():
            x, index = of_arm[measure], c.experiment.arms.index(arm)
            if x is None:
                continue
            mean, (paint, _, symbol) = x.mean(axis=0), arm_line(index)
            above, below = _whiskers(x)
            means += mean.tolist()
            figure.add_scatter(
                x=list(range(mean.size)), y=mean, name=escape(arm), legendgroup=arm, showlegend=col == 1,
                visible=visible(index - 1), mode="markers", marker={"color": paint, "size": 8, "symbol": symbol},
                error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.5,
                         "width": 3, "color": paint},
                hovertemplate=f"layer %{{x}}: %{{y:+.2f}}<extra>{escape(arm)}, W_{kind}</extra>", row=1, col=col,
            )  # fmt: skip
            inside = int((np.abs(mean) <= PAPER_BAND).sum())
            texts.append(f"{arm}, W_{kind}: {inside} of {mean.size} layers within ±3; by layer {spoken(mean, 1)}.")
        figure.add_hrect(y0=-PAPER_BAND, y1=PAPER_BAND, line_width=0, fillcolor="#888888", opacity=0.18, row=1, col=col)
        guide(figure, 0.0, 1, col)
        focus(figure, means, PAPER_BAND, 1, col)
    label(figure, 1, len(RANKS), "layer", "Δ effective rank (dimensions)")
    return Drawing(figure, " ".join(texts), ("effective_rank", "interval"))


def _differences(pairs: list[Pair], measure: str) -> np.ndarray | None:
    """[pairs, layers], arm minus baseline at each pair's last common reading; None where no pair has it."""
    rows = []
    for pair in pairs:
        if pair.common_steps:
            a, b = (profile(cell.readings[pair.common_steps[-1]], measure) for cell in (pair.a, pair.b))
            if a is not None and b is not None and a.size == b.size:
                rows.append(b - a)
    return np.array(rows) if rows and len({row.size for row in rows}) == 1 else None


def _whiskers(x: np.ndarray) -> tuple[list[float], list[float]]:
    """How far each layer's 95 % interval reaches above and below its mean over the pairs; x: [pairs, layers]."""
    ends = [(interval(column, 0.95), column.mean()) for column in x.T]
    above = [0.0 if within.high is None else within.high - mean for within, mean in ends]
    below = [0.0 if within.low is None else mean - within.low for within, mean in ends]
    return above, below


def attention_shares(c: Comparison) -> Drawing | None:
    """Attention's share of the energy in every layer, and its spread over the layers at every reading."""
    readings = _last(c)
    if not any(profile(r, "attention_share") is not None for found in readings.values() for r in found):
        return None
    figure = panels(1, 2, 300, ["by layer, last reading", "its spread over the layers (std)"],
                    "Attention's share of the energy")  # fmt: skip
    texts = []
    for index, (arm, found) in enumerate(readings.items()):
        profiles = [p for r in found if (p := profile(r, "attention_share")) is not None]
        seeds_and_mean(figure, profiles, escape(arm), index, 1, 1)
        spreads = [spread for cell in c.cells_of(arm) if (spread := _spread(cell))]
        runs_and_mean(figure, spreads, escape(arm), index, 1, 2)
        if ends := [spread[max(spread)] for spread in spreads]:
            texts.append(f"{arm}: standard deviation over the layers {np.mean(ends):.3f} at the last reading.")
    for text, value in PAPER_SPREAD.items():
        guide(figure, value, 1, 2, text)
    label(figure, 1, 2, "layer", "attention share")
    figure.update_xaxes(title_text="step", row=1, col=2)
    figure.update_yaxes(title_text="std over layers", rangemode="tozero", row=1, col=2)
    return Drawing(figure, " ".join(texts), ("attention_share", "symmetry"))


def _spread(cell: CellResult) -> dict[int, float]:
    shares = {step: profile(reading, "attention_share") for step, reading in cell.readings.items()}
    return {step: float(share.std()) for step, share in shares.items() if share is not None and share.size > 1}


def _last(c: Comparison) -> dict[str, list[dict[str, Any]]]:
    return {arm: [r for cell in c.cells_of(arm) if (r := cell.last_reading)] for arm in c.experiment.arms}
