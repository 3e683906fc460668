"""Draw spectral norms out of proportion to their peers over training (SCIENCE §5)."""

from __future__ import annotations

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import Drawing, guide_line, label_axes, panels, per_arm
from orchestrator.analysis.figures.traces import arms_of
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.measures.pathology import CRITICAL, WARN, ratios


def worst_ratios(c: Comparison) -> Drawing | None:
    """Draw, per cell and reading, the largest spectral norm over the median of its kind in the other layers."""
    curves = {cell.label: _worst(cell) for cell in c.experiment.cells}
    if not any(curves.values()):
        return None
    title = "Largest ratio of a spectral norm to its peers' median"
    figure = panels(1, 1, 260, [""], title)
    rows: list[list[TableCell]] = []
    tops: dict[str, float] = {}
    for arm in arms_of(c):
        paint, dash, symbol = arm.line
        cells = [cell for cell in c.experiment.cells if cell.arm == arm.name and curves[cell.label]]
        for k, cell in enumerate(cells):
            curve = curves[cell.label]
            arm.draw(
                figure, 1, 1, "step %{x}: %{y:.1f} ×, %{customdata}", f"/seed={cell.seed}", x=list(curve),
                y=[ratio for ratio, _ in curve.values()], customdata=[tensor for _, tensor in curve.values()],
                mode="lines+markers", showlegend=k == 0, line={"color": paint, "dash": dash, "width": 1.5},
                marker={"symbol": symbol, "size": 6},
            )  # fmt: skip
        if cells:
            found = ((pair, step, x.seed) for x in cells for step, pair in curves[x.label].items())
            (ratio, tensor), step, seed = max(found, key=lambda one: one[0])
            tops[arm.name] = ratio
            rows.append([arm.name, f"{ratio:.1f}", tensor, str(seed), str(step)])
    for value, word in ((WARN, "warn"), (CRITICAL, "critical")):
        if value <= 3 * max(tops.values()):
            guide_line(figure, value, 1, 1, f"{word}: {value:.0f} ×", log=True)
    figure.update_yaxes(type="log", dtick="D2")
    figure.update_layout(showlegend=True)
    label_axes(figure, 1, 1, "step", "× the peers' median")
    table = Section(title, ["arm", "ratio", "tensor", "seed", "step"], rows)
    return Drawing(figure, title, f"{title}: {per_arm(tops, 1)}.", table, ("pathology", "spectral_norm"))


def _worst(cell: CellResult) -> dict[int, tuple[float, str]]:
    """Return step → the largest ratio and its tensor, where the norms are known."""
    found = {}
    for step, reading in cell.readings.items():
        pairs = []
        for kind in KINDS:
            norms = [layer.measures.get(f"spectral_norm.{kind}") for layer in reading.layers]
            pairs += [(r, f"layer {i}, {kind}") for i, r in enumerate(ratios(norms)) if r is not None]
        if pairs:
            found[step] = max(pairs)
    return found
