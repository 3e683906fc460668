"""Draw what deleting each layer costs, over training, beside the layer's role."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.colors import find_intermediate_color

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.damage import profile_of
from orchestrator.analysis.figures.panels import Drawing, label_axes, layer_axis, layer_rows, panels, per_arm, step_axis
from orchestrator.analysis.figures.roles import LAYER
from orchestrator.analysis.sections.section import Section
from orchestrator.forensics.roles.palette import MARKS, NONE, TIE, letter

LINEAR = 0.01  # nats/token: the colours are about linear in damages within ±LINEAR, and logarithmic beyond
GAIN, NEITHER, COST = (
    "rgb(213, 94, 0)",
    "rgb(220, 220, 224)",
    "rgb(0, 84, 140)",
)  # of deletions that lower the loss, do nothing, raise it
SHADES = 16  # stops of the colour scale
ROLES = ", ".join(f"{mark.letter} {role}" for role, mark in MARKS.items())
LETTERS = (
    f"Letters: the layer's role ({ROLES}, {TIE.letter} tie, {NONE.letter} none); a letter per seed where they differ."
)


def damage_maps(c: Comparison) -> Drawing | None:
    """Draw layer × step for each arm: the damage of the layer's deletion, mean over the seeds, and its roles.

    The loss may also fall: such damages are negative, and have a hue of their own.
    """
    of_arm = {arm: [cell for cell in c.cells_of(arm) if cell.damages] for arm in c.experiment.arms}
    maps = {arm: means for arm, cells in of_arm.items() if (means := _means(cells))}
    if not maps:
        return None
    arms = list(maps)
    steps = sorted({step for means in maps.values() for step in means})
    depth = max(len(mean) for means in maps.values() for mean in means.values())
    every = np.concatenate([mean for means in maps.values() for mean in means.values()])
    low, high = min(every.min(), -LINEAR), max(every.max(), LINEAR)
    title = "Damage of deleting each layer"
    cols = min(2, len(arms))
    rows = -(-len(arms) // cols)
    figure = panels(rows, cols, LAYER * depth + 40, arms, title)
    for index, (arm, means) in enumerate(maps.items()):
        grid = [[_at(means.get(step), layer) for step in steps] for layer in range(depth)]
        signs = [[_letters(of_arm[arm], step, layer) for step in steps] for layer in range(depth)]
        figure.add_trace(
            go.Heatmap(
                z=[[None if value is None else _height(value) for value in line] for line in grid],
                customdata=[[list(of) for of in zip(steps, line, strict=True)] for line in grid],
                text=signs, texttemplate="%{text}", colorscale=_scale(low, high),
                zmin=_height(low), zmax=_height(high), showscale=index == 0, xgap=1, ygap=1,
                colorbar={"title": {"text": "nats/token"}, **_ticks(low, high)},
                hovertemplate="layer %{y}, step %{customdata[0]}<br>"
                "%{customdata[1]:+.3f} nats/token, role %{text}<extra></extra>",
                hoverongaps=False,
            ),
            row=index // cols + 1, col=index % cols + 1,
        )  # fmt: skip
    step_axis(figure, steps, cols)
    layer_axis(figure, depth)
    label_axes(figure, rows, cols, "step", "layer (0 = first)")
    figure.add_annotation(
        text=LETTERS, x=0, xref="paper", xanchor="left", y=0, yref="paper", yanchor="top", yshift=-58,
        showarrow=False, font={"size": 11},
    )  # fmt: skip
    last = {arm: means[max(means)] for arm, means in maps.items()}
    total = {arm: float(mean.sum()) for arm, mean in last.items()}
    text = (
        "Blue: without the layer the loss is higher; orange: lower. "
        f"Sum over the layers of what deleting each costs, last step, nats/token: {per_arm(total, 2)}; {LETTERS}"
    )
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


def _height(value: float) -> float:
    """Return where a damage lies on the colour scale: its sign is kept, and small ones take little room."""
    return float(np.sign(value) * np.log10(1 + abs(value) / LINEAR))


def _scale(low: float, high: float) -> list[tuple[float, str]]:
    """Return the colours from `low` to `high`; a loss and a gain of one size are equally far from the middle."""
    heights = np.linspace(_height(low), _height(high), SHADES)
    shares = heights / max(-heights[0], heights[-1])
    colours = [find_intermediate_color(NEITHER, COST if of > 0 else GAIN, abs(of), colortype="rgb") for of in shares]
    return list(zip(np.linspace(0, 1, SHADES).tolist(), colours, strict=True))


def _ticks(low: float, high: float) -> dict[str, list[float] | list[str]]:
    """Return the ticks of the colour bar: 0, and powers of ten on either side."""
    powers = [10.0**power for power in range(round(np.log10(LINEAR)), 1 + int(np.log10(max(-low, high, 1))))]
    values = [value for size in (-1, 1) for value in (size * power for power in powers) if low <= value <= high]
    names = ["0", *(f"{value:+g}".replace("-", "−") for value in values)]
    return {"tickvals": [_height(value) for value in [0, *values]], "ticktext": names}
