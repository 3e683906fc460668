"""Draw counts of role changes between successive readings."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import Drawing, label_axes, panels, per_arm
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.forensics.roles.routing import STATES

SCALE = [(0.0, "rgba(0,114,178,0)"), (1.0, "rgba(0,114,178,0.6)")]  # legible on light and dark backgrounds


def transition_tables(c: Comparison) -> Drawing | None:
    """Draw, per arm, a matrix of roles before and after, with the counts by chance."""
    if not c.transitions:
        return None
    cols = min(2, len(c.transitions))
    rows = -(-len(c.transitions) // cols)
    title = "Role transitions between successive readings (in parentheses: by chance)"
    figure = panels(rows, cols, 300, [t.arm for t in c.transitions], title, gap=96)
    cells: list[list[TableCell]] = []
    for index, t in enumerate(c.transitions):
        at = {"row": index // cols + 1, "col": index % cols + 1}
        counts = [
            [f"{n} ({by_chance:.1f})" for n, by_chance in zip(*line, strict=True)]
            for line in zip(t.counts, t.expected, strict=True)
        ]
        figure.add_heatmap(
            x=list(STATES), y=list(STATES), z=t.counts, customdata=t.expected, colorscale=SCALE, showscale=False,
            xgap=1, ygap=1, hovertemplate="%{y} → %{x}: %{z}, by chance %{customdata:.1f}<extra></extra>", **at,
        )  # fmt: skip
        figure.add_scatter(  # the heat map's own text would not follow the page's text colour
            x=list(STATES) * len(STATES), y=[before for before in STATES for _ in STATES], mode="text",
            text=[count for line in counts for count in line], textfont={"size": 11}, hoverinfo="skip",
            showlegend=False, **at,
        )  # fmt: skip
        cells += [[t.arm, before, *line] for before, line in zip(STATES, counts, strict=True)]
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, range=[len(STATES) - 0.5, -0.5], showticklabels=False)
    figure.update_yaxes(showticklabels=True, col=1)
    changed = {t.arm: 100 * t.changed / t.layers for t in c.transitions if t.layers}
    chance = {t.arm: 100 * t.changed_expected / t.layers for t in c.transitions if t.layers}
    text = (
        f"Share of layers × intervals in which the role changed, in %: {per_arm(changed, 0)}; by chance: "
        f"{per_arm(chance, 0)}."
    )
    columns = ["arm", "before", *(f"to {after}" for after in STATES)]
    table = Section("Transitions (by chance)", columns, cells)
    label_axes(figure, rows, cols, "role after", "role before")
    return Drawing(figure, title, text, table, ("transition", "role"))
