"""What the sidecars of the arms did to every unit over training."""

from __future__ import annotations

from html import escape

import numpy as np

from orchestrator.compare.comparison import Comparison
from orchestrator.compare.figures.panels import Drawing, label, panels
from orchestrator.compare.multipliers import Held, held


def multiplier_maps(c: Comparison) -> Drawing | None:
    """Multipliers layer × step, geometric mean over the seeds: a row per arm and channel, a panel per kind."""
    rows: list[tuple[str, list[Held]]] = []
    for arm in c.experiment.arms:
        stacks: dict[str, list[Held]] = {}
        for cell in c.cells_of(arm):
            for channel, h in held(cell).items():
                stacks.setdefault(channel, []).append(h)
        rows += [(f"{arm}, {channel}", stack) for channel, stack in stacks.items()]
    if not rows:
        return None
    kinds = [list(dict.fromkeys(stack[0].kinds)) for _, stack in rows]
    cols, depth = max(map(len, kinds)), 1 + max(max(stack[0].layers) for _, stack in rows)
    titles = [
        f"{escape(name)}<br>{kind}" if i == 0 else kind
        for (name, _), own in zip(rows, kinds, strict=True)
        for i, kind in enumerate([*own, *[""] * (cols - len(own))])
    ]
    figure = panels(
        len(rows), cols, 14 * depth + 50, titles, "Multipliers over training, geometric mean over seeds", gap=84
    )
    texts = []
    for row, ((name, stack), own) in enumerate(zip(rows, kinds, strict=True), start=1):
        first = stack[0]
        alike = [h for h in stack if h.units == first.units and h.steps == first.steps]
        logs = np.mean([h.logs for h in alike], axis=0) / np.log(2)  # [D, U]
        means = 2 ** logs.mean(axis=0)
        texts.append(f"{name}: mean multipliers from {means.min():.2f} to {means.max():.2f} over {means.size} units.")
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
    return Drawing(label(figure, len(rows), cols, "step", "layer"), " ".join(texts), ("sidecar",))
