"""One overview figure per table, drawn once for files, report and W&B alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from orchestrator.compare.cells import CellResult
from orchestrator.compare.comparison import Comparison
from orchestrator.compare.conservation import REFERENCES, profile
from orchestrator.compare.migration import STATES, state, transition_counts
from orchestrator.compare.multipliers import Held, held
from orchestrator.compare.pairs import shown, validation_curves
from orchestrator.compare.palette import arm_colour, colour, letter
from orchestrator.files import write_whole

PLOTLY = "plotly.min.js"
LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "title": {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "container",
              "yanchor": "top", "pad": {"t": 16}},
    "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"},
    "margin": {"l": 70, "r": 24, "t": 92, "b": 104},
}  # fmt: skip


def draw(c: Comparison) -> dict[str, go.Figure]:
    """Table name → figure, for every table that has something to show."""
    return {name: figure for name, build in FIGURES.items() if (figure := build(c)) is not None}


def write(figures: dict[str, go.Figure], directory: Path) -> None:
    """Each figure as `<name>.html`; they share one script beside them and need no network."""
    write_whole(directory / PLOTLY, get_plotlyjs())
    for name, figure in figures.items():
        write_whole(directory / f"{name}.html", figure.to_html(include_plotlyjs=PLOTLY))


def role_strips(c: Comparison) -> go.Figure | None:
    """The role of every layer at every reading: one panel per arm and seed."""
    e = c.experiment
    read = [cell for cell in e.cells if cell.readings]
    arms, seeds = _present(e.arms, [x.arm for x in read]), _present(e.seeds, [x.seed for x in read])
    if not read:
        return None
    titles = [f"{escape(arm)}, seed {seed}" for seed in seeds for arm in arms]
    depth = max(len(layers) for cell in read for layers in _layers(cell))
    panel = 20 * depth + 40
    figure = _panels(len(seeds), len(arms), panel, titles, "Roles over training", gap=64)
    for cell in read:
        row, col = seeds.index(cell.seed) + 1, arms.index(cell.arm) + 1
        stacks = _layers(cell)
        roles = [[stack[i]["role"] if i < len(stack) else "" for stack in stacks] for i in range(depth)]
        figure.add_heatmap(
            x=[str(step) for step in cell.readings],
            y=list(range(depth)),
            z=[[STATES.index(state(role)) if role else None for role in line] for line in roles],
            text=[[letter(role) if role else "" for role in line] for line in roles],
            customdata=[[role or "none" for role in line] for line in roles],
            texttemplate="%{text}",
            hovertemplate="step %{x}, layer %{y}: %{customdata}<extra></extra>",
            colorscale=_steps([colour(role) for role in STATES]),
            zmin=-0.5,
            zmax=len(STATES) - 0.5,
            showscale=False,
            xgap=1,
            ygap=1,
            row=row,
            col=col,
        )
    for role in STATES:
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=f"{letter(role)} {role}",
            marker={"symbol": "square", "size": 12, "color": colour(role)}, row=1, col=1,
        )  # fmt: skip
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, dtick=max(1, depth // 12))
    return _label(figure, len(seeds), len(arms), "step", "layer (0 = first)")


def transitions(c: Comparison) -> go.Figure | None:
    """How often each role became each other one between successive readings, all layers and seeds of an arm."""
    table = c.tables["role_migration"]
    arms = _present(c.experiment.arms, list(table["arm"]))
    if not arms:
        return None
    figure = _panels(1, len(arms), 340, [escape(arm) for arm in arms], "Role transitions between successive readings")
    for col, arm in enumerate(arms, start=1):
        moves = table[table["arm"] == arm]
        counts = transition_counts(zip(moves["role_from"], moves["role_to"], strict=True))
        figure.add_heatmap(
            x=list(STATES), y=list(STATES), z=counts, texttemplate="%{z}", colorscale="Blues", showscale=False,
            xgap=1, ygap=1, hovertemplate="%{y} → %{x}: %{z}<extra></extra>", row=1, col=col,
        )  # fmt: skip
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return _label(figure, 1, len(arms), "role after (layers × intervals counted)", "role before")


def budget_by_depth(c: Comparison) -> go.Figure | None:
    """Saturated positions of every layer at the last reading, beside what chance gives."""
    readings = {arm: [x.last_reading for x in c.cells_of(arm) if x.last_reading] for arm in c.experiment.arms}
    shown = [m for m in REFERENCES if any(profile(r, m) is not None for found in readings.values() for r in found)]
    if not shown:
        return None
    figure = _panels(1, len(shown), 340, shown, "Specialist budget along depth, last reading")
    for col, measure in enumerate(shown, start=1):
        for index, (arm, found) in enumerate(readings.items()):
            profiles = [p for r in found if (p := profile(r, measure)) is not None]
            _seeds_and_mean(figure, profiles, escape(arm), arm_colour(index), 1, col)
            chance = [p for r in found if (p := profile(r, f"{measure}_expected")) is not None]
            _mean_line(figure, chance, f"{escape(arm)}, by chance", arm_colour(index), 1, col, dash="dot")
    figure.update_yaxes(rangemode="tozero")
    return _label(figure, 1, len(shown), "layer", "saturated FFN positions")


def cv_by_layer(c: Comparison) -> go.Figure | None:
    """Coefficient of variation of the co-magnitude in every layer at the last reading."""
    readings = {arm: [x.last_reading for x in c.cells_of(arm) if x.last_reading] for arm in c.experiment.arms}
    if not any(profile(r, "cv") is not None for found in readings.values() for r in found):
        return None
    figure = _panels(1, 1, 340, [""], "How unevenly each layer uses its FFN positions, last reading")
    for index, (arm, found) in enumerate(readings.items()):
        profiles = [p for r in found if (p := profile(r, "cv")) is not None]
        _seeds_and_mean(figure, profiles, escape(arm), arm_colour(index), 1, 1)
    figure.update_yaxes(rangemode="tozero")
    return _label(figure, 1, 1, "layer", "CV of FFN co-magnitude")


def heldout_curves(c: Comparison) -> go.Figure | None:
    """Held-out loss over training per domain, and under it every other arm's difference from the baseline."""
    domains = shown(c.domains)
    curves = {
        x.label: validation_curves(x, c.domains) for arm in c.experiment.arms for x in c.cells_of(arm) if x.ledger
    }
    if not any(curve for found in curves.values() for curve in found.values()):
        return None
    rows = 2 if c.pairs else 1
    titles = [escape(c.name_of(domain)) for domain in domains] + [""] * len(domains) * (rows - 1)
    figure = _panels(rows, len(domains), 260, titles, "Held-out loss, and its difference from the baseline")
    for col, domain in enumerate(domains, start=1):
        for index, arm in enumerate(c.experiment.arms):
            runs = [dict(curves[x.label][domain]) for x in c.cells_of(arm) if x.label in curves]
            _runs_and_mean(figure, runs, escape(arm), arm_colour(index), 1, col)
            if arm in c.compared:
                own = [
                    (dict(curves[p.a.label][domain]), dict(curves[p.b.label][domain])) for p in c.pairs if p.arm == arm
                ]
                gaps = [{step: b[step] - a[step] for step in a if step in b} for a, b in own]
                _runs_and_mean(figure, gaps, escape(arm), arm_colour(index), 2, col)
        if rows == 2:
            figure.add_hline(y=0, line={"color": "#888", "width": 1}, row=2, col=col)
    figure = _label(figure, rows, len(domains), "step", "loss (nats/token)")
    if rows == 2:
        figure.update_yaxes(title_text="Δ from baseline (nats/token)", row=2, col=1)
    return figure


def multiplier_maps(c: Comparison) -> go.Figure | None:
    """Multipliers over training, geometric mean over the seeds: a row per arm and channel, a panel per kind."""
    return draw_multipliers({arm: c.cells_of(arm) for arm in c.experiment.arms})


def draw_multipliers(by_label: dict[str, list[CellResult]]) -> go.Figure | None:
    """Heat maps layer × step of the multipliers in force; None where no cell has a sidecar."""
    rows: list[tuple[str, list[Held]]] = []
    for label, cells in by_label.items():
        stacks: dict[str, list[Held]] = {}
        for cell in cells:
            for channel, h in held(cell).items():
                stacks.setdefault(channel, []).append(h)
        rows += [(f"{label}, {channel}", stack) for channel, stack in stacks.items()]
    if not rows:
        return None
    kinds = [list(dict.fromkeys(stack[0].kinds)) for _, stack in rows]
    cols, depth = max(map(len, kinds)), 1 + max(max(stack[0].layers) for _, stack in rows)
    titles = [
        f"{escape(label)}<br>{kind}" if i == 0 else kind
        for (label, _), own in zip(rows, kinds, strict=True)
        for i, kind in enumerate([*own, *[""] * (cols - len(own))])
    ]
    title = "Multipliers over training, geometric mean over seeds"
    figure = _panels(len(rows), cols, 14 * depth + 50, titles, title, gap=84)
    for row, ((_, stack), own) in enumerate(zip(rows, kinds, strict=True), start=1):
        first = stack[0]
        alike = [h for h in stack if h.units == first.units and h.steps == first.steps]
        logs = np.mean([h.logs for h in alike], axis=0) / np.log(2)  # [D, U]
        for col, kind in enumerate(own, start=1):
            columns = [i for i, k in enumerate(first.kinds) if k == kind]
            z = logs[:, columns].T
            figure.add_heatmap(
                x=first.steps, y=[first.layers[i] for i in columns], z=z, customdata=2**z, coloraxis="coloraxis",
                hovertemplate="step %{x}, layer %{y}: × %{customdata:.2f}<extra></extra>", row=row, col=col,
            )  # fmt: skip
    ticks = [-3, -2, -1, 0, 1, 2, 3]
    bar = {"title": "×", "tickvals": ticks, "ticktext": ["⅛", "¼", "½", "1", "2", "4", "8"]}
    figure.update_layout(coloraxis={"colorscale": "RdBu", "cmid": 0, "cmin": -3, "cmax": 3, "colorbar": bar})
    figure.update_yaxes(autorange="reversed", showgrid=False, dtick=max(1, depth // 8))
    figure.update_xaxes(showgrid=False, nticks=4)
    return _label(figure, len(rows), cols, "step", "layer")


FIGURES: dict[str, Callable[[Comparison], go.Figure | None]] = {
    "layers": role_strips,
    "role_migration": transitions,
    "conservation": budget_by_depth,
    "flattening": cv_by_layer,
    "paired_eval": heldout_curves,
    "sidecar": multiplier_maps,
}


def _panels(rows: int, cols: int, height: int, titles: Sequence[str], title: str, gap: int = 48) -> go.Figure:
    """A grid of panels, each `height` pixels high, `gap` pixels between rows."""
    inner = rows * height + (rows - 1) * gap
    figure = make_subplots(
        rows=rows, cols=cols, subplot_titles=list(titles), shared_yaxes="rows" if cols > 1 else False,
        vertical_spacing=gap / inner if rows > 1 else 0, horizontal_spacing=0.04,
    )  # fmt: skip
    margin = LAYOUT["margin"]
    figure.update_layout(**LAYOUT, height=inner + margin["t"] + margin["b"])
    return figure.update_layout(title_text=title)


def _label(figure: go.Figure, rows: int, cols: int, x: str, y: str) -> go.Figure:
    """Axis titles at the outer edges only."""
    for col in range(1, cols + 1):
        figure.update_xaxes(title_text=x, row=rows, col=col)
    for row in range(1, rows + 1):
        figure.update_yaxes(title_text=y, row=row, col=1)
    return figure


def _seeds_and_mean(figure: go.Figure, profiles: list[np.ndarray], name: str, paint: str, row: int, col: int) -> None:
    """Dots for the seeds' values per layer, a line for their mean."""
    for values in profiles:
        figure.add_scatter(
            x=list(range(values.size)), y=values, mode="markers", opacity=0.45, showlegend=False, name=name,
            marker={"color": paint, "size": 6}, row=row, col=col,
        )  # fmt: skip
    _mean_line(figure, profiles, name, paint, row, col)


def _mean_line(
    figure: go.Figure, profiles: list[np.ndarray], name: str, paint: str, row: int, col: int, dash: str = "solid"
) -> None:
    if profiles and len({values.size for values in profiles}) == 1:
        figure.add_scatter(
            x=list(range(profiles[0].size)), y=np.mean(profiles, axis=0), mode="lines", name=name, legendgroup=name,
            showlegend=(row, col) == (1, 1), line={"color": paint, "width": 2, "dash": dash}, row=row, col=col,
        )  # fmt: skip


def _runs_and_mean(figure: go.Figure, runs: list[dict[int, float]], name: str, paint: str, row: int, col: int) -> None:
    """A faint line per seed over the steps, a strong one for their mean at the steps they share."""
    for run in runs if len(runs) > 1 else []:
        figure.add_scatter(
            x=list(run), y=list(run.values()), mode="lines", opacity=0.35, showlegend=False, name=name,
            line={"color": paint, "width": 1}, row=row, col=col,
        )  # fmt: skip
    shared = [step for step in (runs[0] if runs else {}) if all(step in run for run in runs)]
    if shared:
        figure.add_scatter(
            x=shared, y=[float(np.mean([run[step] for run in runs])) for step in shared], mode="lines", name=name,
            legendgroup=name, showlegend=(row, col) == (1, 1), line={"color": paint, "width": 2}, row=row, col=col,
        )  # fmt: skip


def _steps(colours: Sequence[str]) -> list[tuple[float, str]]:
    """A colour scale of equal flat steps."""
    n = len(colours)
    return [(edge / n, paint) for i, paint in enumerate(colours) for edge in (i, i + 1)]


def _layers(cell: CellResult) -> list[list[dict[str, Any]]]:
    return [reading["layers"] for reading in cell.readings.values()]


def _present(order: Sequence[Any], found: Sequence[Any]) -> list[Any]:
    return [item for item in order if item in set(found)]
