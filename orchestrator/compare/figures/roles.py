"""The role of every layer over training, and how often each became each other one."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any, NamedTuple

import plotly.graph_objects as go

from orchestrator.compare.cells import CellResult
from orchestrator.compare.comparison import Comparison
from orchestrator.compare.figures.panels import Drawing, label, panels
from orchestrator.compare.migration import STATES, state
from orchestrator.compare.statistics import mean_of_known
from orchestrator.palette import colour, faded, letter

MOST_FREQUENT = "most frequent over the seeds"
APART = 2  # seeds up to which every cell has a map of its own
DIVIDED = "no most frequent role"
SHADES = {**{role: (letter(role), colour(role)) for role in STATES}, DIVIDED: ("≠", "#EEEEEE")}
HOVER = (  # measure → its words in the hover of a layer
    ("cv", "CV {:.2f}"), ("saturated_robust", "saturated {:.3g}"), ("saturated_robust_expected", "by chance {:.3g}"),
    ("effective_rank.o", "effective rank o {:.1f}"), ("attention_share", "attention share {:.2f}"),
    ("momentum_alignment.down", "momentum on down {:+.3f}"),
)  # fmt: skip
CHANGED = {"symbol": "diamond", "size": 8, "color": "#ffffff", "line": {"width": 1.5, "color": "#111111"}}
FULL = 0.999  # of a state's stretch of the colour scale; 1 is the next one's palest
LETTERS_UP_TO = 700  # layers × readings of one panel; more would not be legible


class Square(NamedTuple):
    """One layer at one reading: of one seed, or of several together."""

    role: str
    share: float  # of the seeds that have it
    layers: list[dict[str, Any]]


def role_maps(c: Comparison) -> Drawing | None:
    """Layer × step: a map per cell, or of many seeds one per arm with the most frequent role, or one seed's."""
    read = [cell for cell in c.experiment.cells if cell.readings]
    if not read:
        return None
    steps = sorted({step for cell in read for step in cell.readings})
    depth = max(len(reading["layers"]) for cell in read for reading in cell.readings.values())
    seeds = sorted({cell.seed for cell in read})
    arms = [arm for arm in c.experiment.arms if any(cell.arm == arm for cell in read)]
    of_arm = {arm: [cell for cell in read if cell.arm == arm] for arm in arms}
    together = len(seeds) > APART
    maps = of_arm if together else {f"{x.arm}, seed {x.seed}": [x] for seed in seeds for x in read if x.seed == seed}
    views = [MOST_FREQUENT, *seeds] if together else [MOST_FREQUENT]
    cols = min(2, len(maps)) if together or len(arms) < 2 else min(2, len(arms))
    rows = -(-len(maps) // cols)
    figure = panels(rows, cols, 18 * depth + 40, [escape(name) for name in maps], "Roles over training")
    owner: list[Any] = []  # the view that each trace belongs to
    for index, cells in enumerate(maps.values()):
        for view in views:
            own = cells if view == MOST_FREQUENT else [cell for cell in cells if cell.seed == view]
            for trace in _map(own, steps, depth, shown=view == views[0]):
                figure.add_trace(trace, row=index // cols + 1, col=index % cols + 1)
                owner.append(view)
    owner += [None] * len(_legend(figure, together))
    if together:
        names = [str(view) if view == MOST_FREQUENT else f"seed {view}" for view in views]
        _menu(figure, names, [[own in (view, None) for own in owner] for view in views])
    ticks = range(0, len(steps), max(1, len(steps) // (16 // cols)))
    figure.update_xaxes(
        tickvals=list(ticks), ticktext=[str(steps[i]) for i in ticks], showgrid=False, zeroline=False,
        range=[-0.5, len(steps) - 0.5],
    )  # fmt: skip
    figure.update_yaxes(showgrid=False, zeroline=False, dtick=max(1, depth // 12), range=[depth - 0.5, -0.5])
    label(figure, rows, cols, "step", "layer (0 = first)")
    text = " ".join(f"{name} at its last reading: {_spoken(cells)}." for name, cells in maps.items())
    return Drawing(figure, text, ("role", "tie", "null", "cv", "saturated_robust"))


def _spoken(cells: list[CellResult]) -> str:
    squares = _squares(cells, max(step for cell in cells for step in cell.readings))
    return ", ".join(f"layer {i} {square.role}" for i, square in enumerate(squares) if square)


def _squares(cells: list[CellResult], step: int) -> list[Square | None]:
    """The layers of a step over the cells that were read there; where two states are equally frequent, neither."""
    stacks = [cell.readings[step]["layers"] for cell in cells if step in cell.readings]
    found: list[Square | None] = []
    for i in range(max((len(stack) for stack in stacks), default=0)):
        layers = [stack[i] for stack in stacks if i < len(stack)]
        (most, seeds), *others = Counter(state(layer["role"]) for layer in layers).most_common()
        role = DIVIDED if others and others[0][1] == seeds else layers[0]["role"] if len(layers) == 1 else most
        found.append(Square(role, seeds / len(layers), layers))
    return found


def _map(cells: list[CellResult], steps: list[int], depth: int, *, shown: bool) -> list[go.Heatmap | go.Scatter]:
    """The map of one arm and view, and marks where a layer's state is not what it was at the reading before."""
    grid = [_squares(cells, step) for step in steps]  # per step, per layer
    table = [[squares[i] if i < len(squares) else None for squares in grid] for i in range(depth)]
    letters = depth * len(steps) <= LETTERS_UP_TO
    squares = go.Heatmap(
        z=[[_code(square) for square in line] for line in table],
        text=[[SHADES[_shade(square)][0] if square else "" for square in line] for line in table],
        texttemplate="%{text}" if letters else None,
        hovertext=[[_hover(x, i, step, len(cells)) for x, step in zip(line, steps, strict=True)]
                   for i, line in enumerate(table)],
        hoverinfo="text", hoverongaps=False, colorscale=_scale(), zmin=0, zmax=len(SHADES), showscale=False,
        xgap=1, ygap=1, visible=shown,
    )  # fmt: skip
    marks = [
        (k - 0.5, i, f"layer {i}: {before.role} until step {steps[k - 1]}, {after.role} at {steps[k]}")
        for i, line in enumerate(table)
        for k in range(1, len(steps))
        if (before := line[k - 1]) and (after := line[k]) and _shade(before) != _shade(after)
    ]
    changes = go.Scatter(
        x=[mark[0] for mark in marks], y=[mark[1] for mark in marks], hovertext=[mark[2] for mark in marks],
        mode="markers", hoverinfo="text", showlegend=False, visible=shown,
        marker=CHANGED,
    )  # fmt: skip
    return [squares, changes]


def _shade(square: Square) -> str:
    """The key of `SHADES`: a role, `tie`, or none that is most frequent."""
    return DIVIDED if square.role == DIVIDED else state(square.role)


def _code(square: Square | None) -> float | None:
    """The colour scale's argument: which state, and how much of its colour."""
    return list(SHADES).index(_shade(square)) + min(square.share, FULL) if square else None


def _scale() -> list[tuple[float, str]]:
    """Every state's colour from pale to full, one after another."""
    n = len(SHADES)
    return [
        (edge, paint)
        for i, (_, paint_of) in enumerate(SHADES.values())
        for edge, paint in ((i / n, faded(paint_of, 0.0)), ((i + FULL) / n if i + 1 < n else 1.0, paint_of))
    ]


def _hover(square: Square | None, layer: int, step: int, seeds: int) -> str:
    if square is None:
        return ""
    known = [(words, mean_of_known(x["measures"].get(key) for x in square.layers)) for key, words in HOVER]
    margin = mean_of_known(x["margin"] for x in square.layers) or 0.0
    share = f" in {round(square.share * len(square.layers))} of {len(square.layers)} seeds" if seeds > 1 else ""
    return f"layer {layer}, step {step}<br><b>{square.role}</b>{share}, margin {margin:.2f}<br>" + "<br>".join(
        words.format(value) for words, value in known if value is not None
    )


def _legend(figure: go.Figure, together: bool) -> list[str]:
    """One entry for each state and one for the marks; their names."""
    entries = [
        (f"{sign} {role}", {"symbol": "square", "size": 12, "color": paint})
        for role, (sign, paint) in SHADES.items()
        if together or role != DIVIDED
    ]
    entries.append(("role changed", CHANGED))
    for name, marker in entries:
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, row=1, col=1)
    return [name for name, _ in entries]


def _menu(figure: go.Figure, names: list[str], shown: list[list[bool]]) -> None:
    buttons = [
        {"label": name, "method": "restyle", "args": [{"visible": states}]}
        for name, states in zip(names, shown, strict=True)
    ]
    menu = {"buttons": buttons, "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 24, "r": 0},
            "showactive": True, "font": {"color": "#222222", "size": 12}, "bgcolor": "#ffffff"}  # fmt: skip
    figure.update_layout(updatemenus=[menu])


def transition_tables(c: Comparison) -> Drawing | None:
    """How often each role became each other one between successive readings, beside what chance would give."""
    if not c.transitions:
        return None
    cols = min(3, len(c.transitions))
    rows = -(-len(c.transitions) // cols)
    names = [escape(t.arm) for t in c.transitions]
    figure = panels(
        rows, cols, 300, names, "Role transitions between successive readings (in parentheses: if dealt at random)"
    )
    texts = []
    for index, t in enumerate(c.transitions):
        texts.append(
            f"{t.arm}: {t.changed} of {t.layers} layers × intervals changed their role; dealt at random "
            f"{t.changed_expected:.1f} would."
        )
        figure.add_heatmap(
            x=list(STATES), y=list(STATES), z=t.counts, customdata=t.expected, colorscale="Blues", showscale=False,
            text=[[f"{n} ({by_chance:.1f})" for n, by_chance in zip(*line, strict=True)]
                  for line in zip(t.counts, t.expected, strict=True)],
            texttemplate="%{text}", xgap=1, ygap=1,
            hovertemplate="%{y} → %{x}: %{z}, dealt at random %{customdata:.1f}<extra></extra>",
            row=index // cols + 1, col=index % cols + 1,
        )  # fmt: skip
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, range=[len(STATES) - 0.5, -0.5], showticklabels=False)
    figure.update_yaxes(showticklabels=True, col=1)
    return Drawing(label(figure, rows, cols, "role after", "role before"), " ".join(texts), ("transition", "role"))
