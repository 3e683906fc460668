"""Draw the role of every layer over training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.common_step import last_readings
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import Drawing, label_axes, layer_axis, panels, per_arm, step_axis, width_of
from orchestrator.analysis.formatting import number
from orchestrator.analysis.sections.section import Roles, Section, TableCell
from orchestrator.analysis.statistics import mean_of_known
from orchestrator.common.formatting import minus
from orchestrator.forensics.reading import LayerReport, roles_of
from orchestrator.forensics.roles.palette import Mark, letter, mark
from orchestrator.forensics.roles.routing import ROLES, STATES, TIE, state

MOST_FREQUENT = "most frequent over the seeds"
APART = 2  # most seeds for which every cell has its own map
DIVIDED = "no most frequent role"  # of several seeds, where two states are equally frequent
SHADES = {role: mark(role) for role in STATES} | {DIVIDED: Mark("≠", "#555555", "#555555")}
HOVER = (  # measure, its name in the hover of a layer, its format
    ("cv", "CV", ".2f"), ("saturated_robust", "saturated", ".3g"), ("saturated_robust_expected", "by chance", ".3g"),
    ("effective_rank.o", "effective rank o", ".1f"), ("attention_share", "attention share", ".2f"),
    ("momentum_alignment.down", "momentum on down", "+.3f"),
)  # fmt: skip
CHANGED = {"symbol": "diamond", "size": 8, "color": "#ffffff", "line": {"width": 1.5, "color": "#111111"}}
FULL = 0.999  # end of a state's part of the colour scale; at 1 the next state begins
ROOM = 8.0  # least width of a reading, pixels, for letters, gaps and marks
LAYER = 18  # height of a layer, pixels


class Square(NamedTuple):
    """One layer at one reading, of one seed or of several."""

    role: str
    share: float  # of the seeds that have it
    layers: list[LayerReport]


def role_maps(c: Comparison) -> Drawing | None:
    """Draw layer × step: a map per cell or, with many seeds, one per arm with the most frequent role or one seed's."""
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
    owner: list[Any] = []  # the view of each trace
    for index, cells in enumerate(maps.values()):
        for view in views:
            first = view == MOST_FREQUENT
            own = cells if first else [cell for cell in cells if cell.seed == view]
            squares = [_squares(own, step) for step in steps]
            grid = [[of_step[i] if i < len(of_step) else None for of_step in squares] for i in range(depth)]
            traces = [_map(grid, steps, HOVER if first else HOVER[:1], roomy=roomy)]
            traces += _ties(grid, roomy=roomy)
            traces += [_changes(grid, steps)] if roomy else []
            for trace in traces:
                figure.add_trace(trace.update(visible=first), row=index // cols + 1, col=index % cols + 1)
                owner.append(view)
    owner += [None] * len(_legend(figure, together=together, marked=roomy))
    if together:
        names = [str(view) if view == MOST_FREQUENT else f"seed {view}" for view in views]
        _menu(figure, names, [[own in (view, None) for own in owner] for view in views])
    step_axis(figure, steps, cols)
    layer_axis(figure, depth)
    label_axes(figure, rows, cols, "step", "layer (0 = first)")
    terms = ("role", "tie", "null", "cv", "saturated_robust")
    return Drawing(figure, title, _gist(of_arm, depth), _table(of_arm, depth), terms)


def _gist(of_arm: dict[str, list[CellResult]], depth: int) -> str:
    """Write the number of layers whose last state is not their first, mean over the cells read twice."""
    known: dict[str, float] = {}
    for arm, cells in of_arm.items():
        stacks = [list(map(roles_of, cell.readings.values())) for cell in cells]
        moved = [sum(state(a) != state(b) for a, b in zip(s[0], s[-1], strict=False)) for s in stacks if len(s) > 1]
        known |= {arm: float(np.mean(moved))} if moved else {}
    if not known:
        return f"Roles of up to {depth} layers, each read once."
    return f"Layers (of {depth}) whose last role differs from their first, mean over the seeds: {per_arm(known, 1)}."


def _table(of_arm: dict[str, list[CellResult]], depth: int) -> Section:
    """Return the roles of every layer at the last reading, seed by seed."""
    last = {arm: [roles_of(reading) for reading in last_readings(cells)] for arm, cells in of_arm.items()}
    rows: list[list[TableCell]] = [[str(i)] for i in range(depth)]
    for found in last.values():
        for i, row in enumerate(rows):
            row.append(Roles([roles[i] for roles in found if i < len(roles)], words=len(found) == 1))
    return Section("Roles at the last reading, one for each seed", ["layer", *last], rows)


def _squares(cells: list[CellResult], step: int) -> list[Square | None]:
    """Return a square per layer at `step`, over the cells read there."""
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
    """Draw the map of one arm and view; the hover is a template with short values, to keep files small."""
    squares = [square for line in grid for square in line if square]
    facts = _facts(squares, measures)
    template = "".join(words.format(f"%{{customdata[{k}]}}") for k, (words, _) in enumerate(facts, start=1))
    places = {state: index for index, state in enumerate(SHADES)}  # on the colour scale, before the share of seeds
    codes = [[places[_shade(square)] + min(square.share, FULL) if square else None for square in line] for line in grid]
    return go.Heatmap(
        z=np.array(codes, dtype=np.float32),
        text=[[_letter(square) if square else "" for square in line] for line in grid] if roomy else None,
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
    """Return (template, value of a square) of each part of the hover, without measures that no square has."""
    found: list[tuple[str, Callable[[Square], str]]] = [("<b>{}</b>", lambda square: square.role)]
    if any(len(square.layers) > 1 for square in squares):
        found.append((" in {} seeds", lambda x: f"{round(x.share * len(x.layers))} of {len(x.layers)}"))
    if len(measures) > 1:
        found.append((", margin {}", lambda x: number(mean_of_known(layer.margin for layer in x.layers), 2)))
    for key, words, form in measures:
        if any(layer.measures.get(key) is not None for square in squares for layer in square.layers):
            found.append((f"<br>{words} {{}}", partial(_written, key, form)))
    return found


def _written(key: str, form: str, square: Square) -> str:
    value = mean_of_known(layer.measures.get(key) for layer in square.layers)
    return "–" if value is None else minus(format(value, form))


def _changes(grid: list[list[Square | None]], steps: list[int]) -> go.Scatter:
    """Mark the readings at which a layer's state changed."""
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


def _ties(grid: list[list[Square | None]], *, roomy: bool) -> list[go.Scatter]:
    """Draw the squares of ties in the colours of both roles, half and half; of several seeds, of the commonest tie."""
    half = 0.46 if roomy else 0.5  # of a square, without the gap
    halves: dict[str, list[tuple[float | None, float | None]]] = {}
    for i, line in enumerate(grid):
        for k, square in enumerate(line):
            ties = Counter(layer.role for layer in square.layers if "/" in layer.role) if square else None
            if square is None or not ties or state(square.role) != TIE:
                continue
            first, second = ties.most_common(1)[0][0].split("/")
            left, right, low, high = k - half, k + half, i - half, i + half
            halves.setdefault(first, []).extend([(left, low), (right, low), (left, high), (None, None)])
            halves.setdefault(second, []).extend([(right, low), (right, high), (left, high), (None, None)])
    return [
        go.Scatter(
            x=[x for x, _ in corners], y=[y for _, y in corners], mode="none", fill="toself",
            fillcolor=mark(role).colour, hoverinfo="skip", showlegend=False,
        )
        for role, corners in halves.items()
    ]  # fmt: skip


def _shade(square: Square) -> str:
    """Return the square's key in `SHADES`: one of `STATES` or `DIVIDED`."""
    return DIVIDED if square.role == DIVIDED else state(square.role)


def _letter(square: Square) -> str:
    """Return the letter of a role, a dash for no role; none for a tie, which has two colours."""
    return (
        SHADES[DIVIDED].letter if square.role == DIVIDED else "" if state(square.role) == TIE else letter(square.role)
    )


def _scale() -> list[tuple[float, str]]:
    """Return the colour scale: each state's colours from palest to full, one state after another."""
    n = len(SHADES)
    return [
        (edge, paint)
        for i, (_, full, pale) in enumerate(SHADES.values())
        for edge, paint in ((i / n, pale), ((i + FULL) / n if i + 1 < n else 1.0, full))
    ]


def _legend(figure: go.Figure, *, together: bool, marked: bool) -> list[str]:
    """Add an entry per state and other sign, and return their names."""
    entries: list[tuple[str, dict[str, Any]]] = [
        (f"{sign} {role}", {"symbol": "square", "size": 12, "color": full})
        for role, (sign, full, _) in SHADES.items()
        if role != TIE and (together or role != DIVIDED)
    ]
    both = {"type": "horizontal", "color": mark(ROLES[-1]).colour}
    entries.append(
        ("tie: both colours", {"symbol": "square", "size": 12, "color": mark(ROLES[0]).colour, "gradient": both})
    )
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
