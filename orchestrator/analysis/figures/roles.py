"""The role of every layer over training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.common_step import last_readings
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import Drawing, label_axes, panels, per_arm, width_of
from orchestrator.analysis.formatting import number
from orchestrator.analysis.migration import STATES, state
from orchestrator.analysis.sections.section import Roles, Section, TableCell
from orchestrator.analysis.statistics import mean_of_known
from orchestrator.forensics.reading import LayerReport, roles_of
from orchestrator.forensics.roles.palette import mark

MOST_FREQUENT = "most frequent over the seeds"
APART = 2  # seeds up to which every cell has a map of its own
DIVIDED = "no most frequent role"
SHADES = {  # → sign, full colour, palest
    **{role: mark(role) for role in STATES},
    DIVIDED: ("≠", "#555555", "#555555"),
}
HOVER = (  # measure, its name in the hover of a layer, its format
    ("cv", "CV", ".2f"), ("saturated_robust", "saturated", ".3g"), ("saturated_robust_expected", "by chance", ".3g"),
    ("effective_rank.o", "effective rank o", ".1f"), ("attention_share", "attention share", ".2f"),
    ("momentum_alignment.down", "momentum on down", "+.3f"),
)  # fmt: skip
CHANGED = {"symbol": "diamond", "size": 8, "color": "#ffffff", "line": {"width": 1.5, "color": "#111111"}}
FULL = 0.999  # of a state's part of the colour scale; 1 is the palest of the next state
ROOM = 8.0  # pixels of a reading; with fewer there is no room for a letter, a gap or a mark
LAYER = 18  # pixels


class Square(NamedTuple):
    """One layer at one reading: of one seed, or of several together."""

    role: str
    share: float  # of the seeds that have it
    layers: list[LayerReport]


def role_maps(c: Comparison) -> Drawing | None:
    """Layer × step: a map per cell or, with many seeds, one per arm that shows the most frequent role or one seed's."""
    read = [cell for cell in c.experiment.cells if cell.readings]
    if not read:
        return None
    steps = sorted({step for cell in read for step in cell.readings})
    depth = max(len(reading.layers) for cell in read for reading in cell.readings.values())
    seeds = sorted({cell.seed for cell in read})
    arms = [arm for arm in c.experiment.arms if any(cell.arm == arm for cell in read)]
    of_arm = {arm: [cell for cell in read if cell.arm == arm] for arm in arms}
    together = len(seeds) > APART
    maps = of_arm if together else {f"{x.arm}, seed {x.seed}": [x] for seed in seeds for x in read if x.seed == seed}
    views = [MOST_FREQUENT, *seeds] if together else [MOST_FREQUENT]
    cols = min(2, len(maps)) if together or len(arms) < 2 else min(2, len(arms))
    rows = -(-len(maps) // cols)
    roomy = width_of(cols) / len(steps) >= ROOM
    title = "Roles over training"
    figure = panels(rows, cols, LAYER * depth + 40, list(maps), title)
    owner: list[Any] = []  # the view that each trace belongs to
    for index, cells in enumerate(maps.values()):
        for view in views:
            first = view == MOST_FREQUENT
            own = cells if first else [cell for cell in cells if cell.seed == view]
            grid = _grid(own, steps, depth)
            traces = [_map(grid, steps, HOVER if first else HOVER[:1], roomy=roomy)]
            traces += [_changes(grid, steps)] if roomy else []
            for trace in traces:
                figure.add_trace(trace.update(visible=first), row=index // cols + 1, col=index % cols + 1)
                owner.append(view)
    owner += [None] * len(_legend(figure, together=together, marked=roomy))
    if together:
        names = [str(view) if view == MOST_FREQUENT else f"seed {view}" for view in views]
        _menu(figure, names, [[own in (view, None) for own in owner] for view in views])
    ticks = range(0, len(steps), max(1, -(-len(steps) * cols // 16)))
    figure.update_xaxes(
        tickvals=list(ticks), ticktext=[str(steps[i]) for i in ticks], showgrid=False, zeroline=False,
        range=[-0.5, len(steps) - 0.5],
    )  # fmt: skip
    figure.update_yaxes(showgrid=False, zeroline=False, dtick=max(1, depth // 12), range=[depth - 0.5, -0.5])
    label_axes(figure, rows, cols, "step", "layer (0 = first)")
    return Drawing(
        figure, title, _gist(of_arm, depth), _table(of_arm, depth), ("role", "tie", "null", "cv", "saturated_robust")
    )


def _gist(of_arm: dict[str, list[CellResult]], depth: int) -> str:
    """The number of layers whose role changed over training, as a sentence."""
    moved = {arm: mean_of_known(map(_moved, cells)) for arm, cells in of_arm.items()}
    known = {arm: value for arm, value in moved.items() if value is not None}
    if not known:
        return f"Roles of up to {depth} layers, each read once."
    return (
        f"Layers (of {depth}) that ended in another role than they began in, mean over the seeds: {per_arm(known, 1)}."
    )


def _moved(cell: CellResult) -> float | None:
    """Layers whose state at the last reading is not that of the first; null for a single reading."""
    if len(cell.readings) < 2:
        return None
    stacks = [roles_of(reading) for reading in cell.readings.values()]
    return float(sum(state(a) != state(b) for a, b in zip(stacks[0], stacks[-1], strict=False)))


def _table(of_arm: dict[str, list[CellResult]], depth: int) -> Section:
    """The roles of every layer at the last reading, seed by seed."""
    last = {arm: [roles_of(reading) for reading in last_readings(cells)] for arm, cells in of_arm.items()}
    rows: list[list[TableCell]] = [
        [
            str(i),
            *(Roles([roles[i] for roles in found if i < len(roles)], words=len(found) == 1) for found in last.values()),
        ]
        for i in range(depth)
    ]
    return Section("Roles at the last reading, one for each seed", ["layer", *last], rows)


def _grid(cells: list[CellResult], steps: list[int], depth: int) -> list[list[Square | None]]:
    """[layer][reading], over the cells."""
    squares = [_squares(cells, step) for step in steps]
    return [[of_step[i] if i < len(of_step) else None for of_step in squares] for i in range(depth)]


def _squares(cells: list[CellResult], step: int) -> list[Square | None]:
    """The layers of a step over the cells read there; `DIVIDED` where two states are equally frequent."""
    stacks = [cell.readings[step].layers for cell in cells if step in cell.readings]
    found: list[Square | None] = []
    for i in range(max((len(stack) for stack in stacks), default=0)):
        layers = [stack[i] for stack in stacks if i < len(stack)]
        (most, seeds), *others = Counter(state(layer.role) for layer in layers).most_common()
        role = DIVIDED if others and others[0][1] == seeds else layers[0].role if len(layers) == 1 else most
        found.append(Square(role, seeds / len(layers), layers))
    return found


def _map(
    grid: list[list[Square | None]], steps: list[int], measures: tuple[tuple[str, str, str], ...], *, roomy: bool
) -> go.Heatmap:
    """The map of one arm and view. The hover is one template and short values, since files hold thousands of cells."""
    squares = [square for line in grid for square in line if square]
    facts = _facts(squares, measures)
    template = "".join(words.format(f"%{{customdata[{k}]}}") for k, (words, _) in enumerate(facts, start=1))
    return go.Heatmap(
        z=np.array([[_code(square) for square in line] for line in grid], dtype=np.float32),
        text=[[SHADES[_shade(square)][0] if square else "" for square in line] for line in grid] if roomy else None,
        texttemplate="%{text}" if roomy else None,
        customdata=[[[step, *(value(square) for _, value in facts)] if square else None
                     for square, step in zip(line, steps, strict=True)] for line in grid],
        hovertemplate=f"layer %{{y}}, step %{{customdata[0]}}<br>{template}<extra></extra>",
        hoverongaps=False, colorscale=_scale(), zmin=0, zmax=len(SHADES), showscale=False,
        xgap=int(roomy), ygap=1,
    )  # fmt: skip


def _facts(
    squares: list[Square], measures: tuple[tuple[str, str, str], ...]
) -> list[tuple[str, Callable[[Square], str]]]:
    """(template, value of a square) of each line of the hover; a measure that no square has is left out."""
    found: list[tuple[str, Callable[[Square], str]]] = [("<b>{}</b>", lambda square: square.role)]
    if any(len(square.layers) > 1 for square in squares):
        found.append((" in {} seeds", lambda x: f"{round(x.share * len(x.layers))} of {len(x.layers)}"))
    if len(measures) > 1:
        found.append((", margin {}", lambda x: number(mean_of_known(layer.margin for layer in x.layers), 2)))
    for key, words, form in measures:
        if any(layer.measures.get(key) is not None for square in squares for layer in square.layers):
            found.append((f"<br>{words} {{}}", _written(key, form)))
    return found


def _written(key: str, form: str) -> Callable[[Square], str]:
    def write(square: Square) -> str:
        value = mean_of_known(layer.measures.get(key) for layer in square.layers)
        return "–" if value is None else format(value, form)

    return write


def _changes(grid: list[list[Square | None]], steps: list[int]) -> go.Scatter:
    """Marks where a layer's state is not what it was at the reading before."""
    marks = [
        (k - 0.5, i, f"layer {i}: {before.role} until step {steps[k - 1]}, {after.role} at {steps[k]}")
        for i, line in enumerate(grid)
        for k in range(1, len(steps))
        if (before := line[k - 1]) and (after := line[k]) and _shade(before) != _shade(after)
    ]
    return go.Scatter(
        x=[mark[0] for mark in marks], y=[mark[1] for mark in marks], hovertext=[mark[2] for mark in marks],
        mode="markers", hoverinfo="text", showlegend=False, marker=CHANGED,
    )  # fmt: skip


def _shade(square: Square) -> str:
    """The key of `SHADES`: a role, `tie` or `DIVIDED`."""
    return DIVIDED if square.role == DIVIDED else state(square.role)


def _code(square: Square | None) -> float | None:
    """The square's value on the colour scale: index of the state + share of the seeds."""
    return list(SHADES).index(_shade(square)) + min(square.share, FULL) if square else None


def _scale() -> list[tuple[float, str]]:
    """The colour scale: every state's colours from palest to full, one after another."""
    n = len(SHADES)
    return [
        (edge, paint)
        for i, (_, full, pale) in enumerate(SHADES.values())
        for edge, paint in ((i / n, pale), ((i + FULL) / n if i + 1 < n else 1.0, full))
    ]


def _legend(figure: go.Figure, *, together: bool, marked: bool) -> list[str]:
    """Add one entry per state and per other sign; returns their names."""
    entries: list[tuple[str, dict[str, Any]]] = [
        (f"{sign} {role}", {"symbol": "square", "size": 12, "color": full})
        for role, (sign, full, _) in SHADES.items()
        if together or role != DIVIDED
    ]
    if together:
        _, full, pale = SHADES[STATES[0]]
        shading = {"type": "horizontal", "color": pale}
        entries.append(("paler: fewer seeds", {"symbol": "square", "size": 12, "color": full, "gradient": shading}))
    if marked:
        entries.append(("role changed", CHANGED))
    for name, marker in entries:
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, legendgroup=name, marker=marker, row=1, col=1)
    return [name for name, _ in entries]


def _menu(figure: go.Figure, names: list[str], shown: list[list[bool]]) -> None:
    buttons = [
        {"label": name, "method": "restyle", "args": [{"visible": states}]}
        for name, states in zip(names, shown, strict=True)
    ]
    menu = {"buttons": buttons, "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 24, "r": 0},
            "showactive": True, "font": {"color": "#222222", "size": 12}, "bgcolor": "#ffffff"}  # fmt: skip
    figure.update_layout(updatemenus=[menu])
