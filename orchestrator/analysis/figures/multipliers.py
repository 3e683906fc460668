"""Draw the multipliers that the sidecars applied to every unit over training."""

from __future__ import annotations

import numpy as np

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import Drawing, escaped, label_axes, panels, short
from orchestrator.analysis.formatting import number
from orchestrator.analysis.multipliers import Multipliers, in_order, multipliers_of
from orchestrator.analysis.sections.section import Section, TableCell

LESS, NONE, MORE = "#D55E00", "rgba(136,136,136,0.12)", "#0072B2"  # legible on any background, faint near 1


def multiplier_maps(c: Comparison) -> Drawing | None:
    """Draw multipliers, layer × step, geometric mean over the seeds: a row per arm and channel, a panel per kind."""
    stacks: dict[str, list[Multipliers]] = {}  # arm, channel → the multipliers of each seed
    for arm in c.experiment.arms:
        for cell in c.cells_of(arm):
            for channel, m in multipliers_of(cell).items():
                stacks.setdefault(f"{arm}, {channel}", []).append(m)
    if not stacks:
        return None
    kinds = {name: _in_order(stack[0]) for name, stack in stacks.items()}
    cols = max(map(len, kinds.values()))
    depth = 1 + max(layer or 0 for stack in stacks.values() for layer in stack[0].layers)
    title = "Multipliers over training, geometric mean over seeds"
    titles = [kind for own in kinds.values() for kind in [*own, *[""] * (cols - len(own))]]
    figure = panels(len(stacks), cols, 14 * depth + 50, titles, title, gap=84)
    columns = list(dict.fromkeys(kind for own in kinds.values() for kind in own))
    rows: list[list[TableCell]] = []
    extremes: list[tuple[float, str]] = []
    for row, (name, stack) in enumerate(stacks.items(), start=1):
        first = stack[0]
        alike = [m for m in stack if m.units == first.units and m.steps == first.steps]
        logs = np.mean([m.logs for m in alike], axis=0) / np.log(2)  # [D, U]
        means = 2 ** logs.mean(axis=0)
        named = list(zip(first.layers, first.kinds, strict=True))
        extremes += [(float(mean), f"{name}, {kind}" if layer is None else f"{name}, layer {layer}, {kind}")
                     for (layer, kind), mean in zip(named, means, strict=True)]  # fmt: skip
        known = dict(zip(named, means.tolist(), strict=True))
        rows += [
            [name, "–" if layer is None else str(layer), *(number(known.get((layer, kind)), 2) for kind in columns)]
            for layer in in_order(first.layers)
        ]
        for col, kind in enumerate(kinds[name], start=1):
            own = [i for i, k in enumerate(first.kinds) if k == kind]
            z = logs[:, own].T
            where = "" if first.layers[own[0]] is None else ", layer %{y}"
            figure.add_heatmap(
                x=first.steps, y=[first.layers[i] or 0 for i in own], z=z, customdata=2**z, coloraxis="coloraxis",
                hovertemplate=f"step %{{x}}{where}: × %{{customdata:.2f}}<extra></extra>", row=row, col=col,
            )  # fmt: skip
            figure.update_yaxes(showticklabels=bool(where), row=row, col=col)
        figure.add_annotation(
            text=f"<b>{short(name, 80)}</b>", hovertext=escaped(name), x=0, xref="x domain", xanchor="left", y=1,
            yref="y domain", yanchor="bottom", yshift=22, showarrow=False, row=row, col=1,
        )  # fmt: skip
    ticks = [-3, -2, -1, 0, 1, 2, 3]
    bar = {"title": "×", "tickvals": ticks, "ticktext": ["⅛", "¼", "½", "1", "2", "4", "8"]}
    scale = [(0.0, LESS), (0.5, NONE), (1.0, MORE)]
    figure.update_layout(coloraxis={"colorscale": scale, "cmid": 0, "cmin": -3, "cmax": 3, "colorbar": bar})
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, dtick=max(1, depth // 8))
    figure.update_xaxes(showgrid=False, nticks=4)
    label_axes(figure, len(stacks), cols, "step", "layer")
    least, most = min(extremes), max(extremes)
    words = f"Mean multipliers over the run lie between {least[0]:.2f} ({least[1]}) and {most[0]:.2f} ({most[1]})."
    table = Section("Mean multipliers over the run", ["arm, channel", "layer", *columns], rows)
    return Drawing(figure, title, words, table, ("sidecar",))


def _in_order(m: Multipliers) -> list[str]:
    """Each kind once: those of layers, then what lies outside them."""
    outside = {kind for kind, layer in zip(m.kinds, m.layers, strict=True) if layer is None}
    return sorted(dict.fromkeys(m.kinds), key=lambda kind: kind in outside)
