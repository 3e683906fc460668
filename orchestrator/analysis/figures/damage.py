"""Draw what deleting each layer costs, over training, beside the layer's role."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.damage import profile_of
from orchestrator.analysis.figures.panels import Drawing, label_axes, layer_axis, layer_rows, panels, per_arm, step_axis
from orchestrator.analysis.figures.roles import LAYER
from orchestrator.analysis.sections.section import Section
from orchestrator.forensics.roles.palette import letter

LEAST = 1e-3  # nats/token: smaller damages are drawn alike
SCALE = "Cividis"


def damage_maps(c: Comparison) -> Drawing | None:
    """Draw layer × step for each arm: the damage of the layer's deletion, mean over the seeds, and its roles."""
    of_arm = {arm: [cell for cell in c.cells_of(arm) if cell.damages] for arm in c.experiment.arms}
    maps = {arm: means for arm, cells in of_arm.items() if (means := _means(cells))}
    if not maps:
        return None
    arms = list(maps)
    steps = sorted({step for means in maps.values() for step in means})
    depth = max(len(mean) for means in maps.values() for mean in means.values())
    largest = max(mean.max() for means in maps.values() for mean in means.values())
    title = "Damage of deleting each layer"
    cols = min(2, len(arms))
    rows = -(-len(arms) // cols)
    figure = panels(rows, cols, LAYER * depth + 40, arms, title)
    for index, (arm, means) in enumerate(maps.items()):
        grid = [[_at(means.get(step), layer) for step in steps] for layer in range(depth)]
        signs = [[_letters(of_arm[arm], step, layer) for step in steps] for layer in range(depth)]
        figure.add_trace(
            go.Heatmap(
                z=[[None if value is None else np.log10(max(value, LEAST)) for value in line] for line in grid],
                customdata=[[list(of) for of in zip(steps, line, strict=True)] for line in grid],
                text=signs, texttemplate="%{text}", colorscale=SCALE,
                zmin=np.log10(LEAST), zmax=np.log10(max(largest, 10 * LEAST)), showscale=index == 0, xgap=1, ygap=1,
                colorbar={"title": {"text": "nats/token"}, **_ticks(largest)},
                hovertemplate="layer %{y}, step %{customdata[0]}<br>%{customdata[1]:+.3f} nats/token<extra></extra>",
                hoverongaps=False,
            ),
            row=index // cols + 1, col=index % cols + 1,
        )  # fmt: skip
    step_axis(figure, steps, cols)
    layer_axis(figure, depth)
    label_axes(figure, rows, cols, "step", "layer (0 = first)")
    last = {arm: means[max(means)] for arm, means in maps.items()}
    total = {arm: float(mean.sum()) for arm, mean in last.items()}
    text = f"Sum over the layers of what deleting each costs, last step, nats/token: {per_arm(total, 2)}."
    table = Section(
        "Damage at the last step, mean over the seeds", ["layer", *last], layer_rows(list(last.values()), 3)
    )
    return Drawing(figure, title, text, table, ("damage", "role"))


def _means(cells: list[CellResult]) -> dict[int, np.ndarray]:
    """Return step → the damage of every layer [L], the mean over the cells that have it."""
    steps = sorted({step for cell in cells for step in cell.damages})
    found = {
        step: [mean for cell in cells if step in cell.damages and (mean := profile_of(cell.damages[step])) is not None]
        for step in steps
    }
    return {step: np.mean(of_step, axis=0) for step, of_step in found.items() if of_step}


def _at(mean: np.ndarray | None, layer: int) -> float | None:
    return None if mean is None or layer >= len(mean) else float(mean[layer])


def _letters(cells: list[CellResult], step: int, layer: int) -> str:
    """Return one letter where the layer's role is the same in all seeds, else a letter for each of up to three."""
    stacks = [cell.damages[step]["layers"] for cell in cells if step in cell.damages]
    letters = [letter(layers[layer]["role"]) for layers in stacks if layer < len(layers)]
    return letters[0] if len(set(letters)) == 1 else "".join(letters) if len(letters) <= 3 else ""


def _ticks(largest: float) -> dict[str, list[float] | list[str]]:
    powers = range(int(np.log10(LEAST)), int(np.ceil(np.log10(max(largest, 10 * LEAST)))) + 1)
    return {"tickvals": [float(power) for power in powers], "ticktext": [f"{10.0**power:g}" for power in powers]}
