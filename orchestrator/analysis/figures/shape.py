"""Draw the width of every layer of every arm."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import Drawing, label_axes, panels, per_arm
from orchestrator.analysis.figures.traces import arms_of
from orchestrator.analysis.sections.section import Section, TableCell


def width_profiles(c: Comparison) -> Drawing | None:
    """Draw the residual coordinates that each layer reads and writes; None where all arms have one shape."""
    widths = {arm: model.widths for arm, model in c.experiment.models.items() if model.widths}
    if len({tuple(profile) for profile in widths.values()}) < 2:
        return None
    title = "Width of each layer"
    figure = panels(1, 1, 240, [""], title)
    drawn = [arm for arm in arms_of(c) if arm.name in widths]
    for arm in drawn:
        paint, dash, symbol = arm.line
        profile = widths[arm.name]
        arm.draw(
            figure, 1, 1, "layer %{x}: %{y} wide", x=list(range(len(profile))), y=profile, mode="lines+markers",
            line={"shape": "hvh", "color": paint, "dash": dash}, marker={"symbol": symbol, "size": 7},
        )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=True)
    label_axes(figure, 1, 1, "layer", "width")
    means = {arm.name: sum(widths[arm.name]) / len(widths[arm.name]) for arm in drawn}
    rows: list[list[TableCell]] = [
        [str(i), *(str(widths[arm.name][i]) if i < len(widths[arm.name]) else "–" for arm in drawn)]
        for i in range(max(len(widths[arm.name]) for arm in drawn))
    ]
    words = f"Mean width over the layers: {per_arm(means, 0)}."
    return Drawing(figure, title, words, Section(title, ["layer", *(arm.name for arm in drawn)], rows), ("width",))
