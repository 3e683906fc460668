"""Draw the outcome of many experiments against each key in which they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from orchestrator.analysis.figures.panels import LAYOUT, Drawing, escaped, label_axes, panels, short
from orchestrator.analysis.figures.traces import NAME
from orchestrator.analysis.formatting import low_to_high, number
from orchestrator.analysis.sections.section import Section
from orchestrator.analysis.survey import ArmSummary, data_of
from orchestrator.analysis.swept import as_text, differs_between, swept, together
from orchestrator.common.palette import arm_line

WIDE = 10  # a key whose largest value is more than so many times its smallest has a logarithmic axis
MOST = 8  # figures of one page
TOP = 60  # pixels over the only panel, which has no title of its own


@dataclass(frozen=True)
class Factor:
    """Keys that change together, and the arms on one corpus among which they do."""

    keys: list[str]
    arms: list[ArmSummary]
    by: str  # the field of `ArmSummary` that has a colour: arm or experiment
    data: str  # words that tell the corpus from others; empty where all losses are on one

    @property
    def key(self) -> str:
        return self.keys[0]


def factors(arms: Sequence[ArmSummary]) -> list[Factor]:
    """The keys against which to draw the losses: those in which experiments differ, else those in which arms do."""
    found = []
    numbers = data_of(arms)
    for digest, place in numbers.items():
        own = [arm for arm in arms if arm.loss is not None and arm.data == digest and arm.settings]
        keys = swept(own)
        between = [key for key in keys if differs_between(key, own)]
        by, drawn = ("arm", between) if between else ("experiment", keys)
        data = f", on data {place}" if len(numbers) > 1 else ""
        found += [Factor(group, own, by, data) for group in together(drawn, own)]
    return found


def outcome_plots(arms: Sequence[ArmSummary]) -> list[Drawing]:
    """Draw the loss against each of the first `MOST` factors."""
    return [_drawing(factor) for factor in factors(arms)[:MOST]]


def _drawing(factor: Factor) -> Drawing:
    """Draw a point with its interval per arm, and lines between those that are alike in all other keys."""
    key, arms = factor.key, factor.arms
    title = f"Test loss by {key}{factor.data}"
    figure = panels(1, 1, 300, [], title)
    values = {as_text(arm, key): arm.settings.get(key) for arm in arms}
    numeric = all(_is_number(value) for value in values.values())
    ordered = sorted(values, key=lambda text: (values[text], text) if numeric else (0, text))
    _scale(figure, [values[text] for text in ordered] if numeric else ordered, numeric=numeric)
    names = sorted({(getattr(arm, factor.by) != arm.baseline, str(getattr(arm, factor.by))) for arm in arms})
    for index, name in enumerate(dict.fromkeys(name for _, name in names)):
        own = [arm for arm in arms if str(getattr(arm, factor.by)) == name]
        for place, line in enumerate(_lines(own, factor)):
            line.sort(key=lambda arm: ordered.index(as_text(arm, key)))
            _trace(figure, line, factor, name, index, numeric=numeric, first=place == 0)
    _frame(figure, arms)
    label_axes(figure, 1, 1, short(key), "test loss (nats/token)")
    figure.update_layout(margin_t=TOP, height=figure.layout.height - LAYOUT["margin"]["t"] + TOP)
    best = min(arms, key=lambda arm: arm.loss or 0.0)
    words = [f"Lowest: {number(best.loss, 4)} at {key} = {as_text(best, key)} ({best.experiment}, {best.arm})."]
    if len(factor.keys) > 1:
        words.append(f"Together with {key} change {', '.join(factor.keys[1:])}.")
    words.append("Lines join arms that are alike in all other keys; bars are 95 % intervals over the seeds.")
    rows = [
        [as_text(arm, key), str(arm.arm), arm.experiment, str(arm.n), number(arm.loss, 4),
         low_to_high(arm.loss_low, arm.loss_high, 4)]
        for arm in sorted(arms, key=lambda arm: (ordered.index(as_text(arm, key)), arm.loss or 0.0))
    ]  # fmt: skip
    table = Section(title, [key, "arm", "experiment", "n", "loss", "95 % interval"], rows)
    return Drawing(figure, title, " ".join(words), table, ("heldout", "interval"))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _lines(arms: list[ArmSummary], factor: Factor) -> list[list[ArmSummary]]:
    """The arms in groups that are alike but for the factor."""
    groups: dict[tuple[str, ...], list[ArmSummary]] = {}
    others = [key for key in swept(factor.arms) if key not in factor.keys]
    for arm in arms:
        groups.setdefault(tuple(as_text(arm, key) for key in others), []).append(arm)
    return list(groups.values())


def _trace(
    figure: go.Figure, line: list[ArmSummary], factor: Factor, name: str, index: int, *, numeric: bool, first: bool
) -> None:
    paint, dash, symbol = arm_line(index)
    ends = [(a.loss, a.loss_low, a.loss_high) for a in line if a.loss is not None]
    figure.add_scatter(
        x=[a.settings.get(factor.key) if numeric else escaped(as_text(a, factor.key)) for a in line],
        y=[loss for loss, _, _ in ends],
        error_y={
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 4, "color": paint,
            "array": [0.0 if high is None else high - loss for loss, _, high in ends],
            "arrayminus": [0.0 if low is None else loss - low for loss, low, _ in ends],
        },
        mode="lines+markers", name=short(name), legendgroup=escaped(name), showlegend=first,
        line={"color": paint, "width": 2, "dash": dash}, marker={"symbol": symbol, "size": 8, "color": paint},
        hovertext=escaped(name), customdata=[[escaped(f"{a.experiment}, {a.arm}"), a.n] for a in line],
        hovertemplate="%{x}: %{y:.4f}<br>%{customdata[0]}, n = %{customdata[1]}" + NAME, row=1, col=1,
    )  # fmt: skip


def _scale(figure: go.Figure, values: Sequence[object], *, numeric: bool) -> None:
    """Number the x axis, logarithmically where the values lie far apart; else a place for each value."""
    if not numeric:
        order = [escaped(str(value)) for value in values]
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, row=1, col=1)
        return
    sizes = [float(value) for value in values if isinstance(value, int | float)]
    if min(sizes) > 0 and max(sizes) > WIDE * min(sizes):
        ticks = {"tickvals": sizes, "ticktext": [f"{size:.6g}" for size in sizes]} if len(sizes) <= WIDE else {}
        figure.update_xaxes(type="log", **ticks, row=1, col=1)


def _frame(figure: go.Figure, arms: Sequence[ArmSummary]) -> None:
    """Scale the y axis to the losses, with a note where the wide intervals of few seeds lie beyond."""
    found = [arm.loss for arm in arms if arm.loss is not None]
    ends = [end for arm in arms for end in (arm.loss_low, arm.loss_high) if end is not None]
    low, high = min(found), max(found)
    pad = max(0.6 * (high - low), 1e-3 * abs(high), 1e-6)
    low, high = max(low - pad, min([low - pad / 4, *ends])), min(high + pad, max([high + pad / 4, *ends]))
    figure.update_yaxes(range=[low - pad / 10, high + pad / 10], row=1, col=1)
    if any(not low <= end <= high for end in ends if math.isfinite(end)):
        figure.add_annotation(
            text="intervals reach beyond the frame", x=1, xref="x domain", xanchor="right", y=0, yref="y domain",
            yanchor="bottom", showarrow=False, font={"size": 11}, row=1, col=1,
        )  # fmt: skip
