"""The width of every layer of every arm."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from orchestrator.compare.comparison import Comparison
from orchestrator.compare.figures.panels import Drawing, label, panels, visible
from orchestrator.palette import arm_line


def width_profiles(c: Comparison) -> Drawing | None:
    """Residual coordinates that each layer reads and writes; None where all arms are of one shape."""
    widths = {arm: model.widths for arm, model in c.experiment.models.items() if model.widths}
    if len({tuple(profile) for profile in widths.values()}) < 2:
        return None
    figure = panels(1, 1, 240, [""], "Width of each layer")
    for arm, profile in widths.items():
        index = c.experiment.arms.index(arm)
        paint, dash, symbol = arm_line(index)
        figure.add_trace(
            go.Scatter(
                x=list(range(len(profile))), y=profile, mode="lines+markers", name=escape(arm), visible=visible(index),
                line={"shape": "hvh", "color": paint, "dash": dash}, marker={"symbol": symbol, "size": 7},
                hovertemplate=f"layer %{{x}}: %{{y}} wide<extra>{escape(arm)}</extra>",
            )
        )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=True)
    text = " ".join(f"{arm}, widths by layer: {', '.join(map(str, profile))}." for arm, profile in widths.items())
    return Drawing(label(figure, 1, 1, "layer", "width"), text, ("width",))
