"""Whether any tensor leaves its peers behind over training (SCIENCE §5)."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from orchestrator.compare.cells import CellResult
from orchestrator.compare.comparison import Comparison
from orchestrator.compare.figures.panels import Drawing, guide, label, panels, visible
from orchestrator.forensics.anatomy import KINDS
from orchestrator.forensics.pathology import CRITICAL, WARN
from orchestrator.palette import arm_line


def worst_ratios(c: Comparison) -> Drawing | None:
    """Per cell and reading the largest spectral norm over the median of its kind in the other layers."""
    curves = {cell.label: _worst(cell) for cell in c.experiment.cells}
    if not any(curves.values()):
        return None
    figure = panels(1, 1, 260, [""], "Largest spectral norm over its peers'")
    top, texts = 1.0, []
    for index, arm in enumerate(c.experiment.arms):
        paint, dash, symbol = arm_line(index)
        for k, cell in enumerate(x for x in c.experiment.cells if x.arm == arm and curves[x.label]):
            curve = curves[cell.label]
            ratios = [ratio for ratio, _ in curve.values()]
            top = max(top, *ratios)
            figure.add_scatter(
                x=list(curve), y=ratios, mode="lines+markers", name=escape(arm), legendgroup=arm, showlegend=k == 0,
                visible=visible(index), line={"color": paint, "dash": dash, "width": 1.5},
                marker={"symbol": symbol, "size": 6}, customdata=[tensor for _, tensor in curve.values()],
                hovertemplate=f"step %{{x}}: %{{y:.1f}} ×, %{{customdata}}<extra>{escape(cell.label)}</extra>",
            )  # fmt: skip
        own = [curves[x.label] for x in c.experiment.cells if x.arm == arm and curves[x.label]]
        if own:
            worst = max((pair for curve in own for pair in curve.values()), key=lambda pair: pair[0])
            texts.append(f"{arm}: at most {worst[0]:.1f} times its peers ({worst[1]}).")
    for value, word in ((WARN, "warn"), (CRITICAL, "critical")):
        if value <= 3 * top:
            guide(figure, value, 1, 1, f"{word}: {value:.0f} ×")
    figure.update_yaxes(type="log", dtick="D2")
    figure.update_layout(showlegend=True)
    return Drawing(label(figure, 1, 1, "step", "× the peers' median"), " ".join(texts), ("pathology", "spectral_norm"))


def _worst(cell: CellResult) -> dict[int, tuple[float, str]]:
    """Step → the largest ratio and its tensor, where the norms are known."""
    found = {}
    for step, reading in cell.readings.items():
        if pairs := [pair for kind in KINDS for pair in _ratios(reading, kind)]:
            found[step] = max(pairs)
    return found


def _ratios(reading: dict[str, Any], kind: str) -> list[tuple[float, str]]:
    norms = [layer["measures"].get(f"spectral_norm.{kind}") for layer in reading["layers"]]
    if len(norms) < 2 or None in norms:
        return []
    values = np.array(norms, dtype=np.float64)
    medians = [float(np.median(np.delete(values, i))) for i in range(values.size)]
    return [(float(v / m), f"layer {i}, {kind}") for i, (v, m) in enumerate(zip(values, medians, strict=True)) if m > 0]
