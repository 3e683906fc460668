"""The study's figure: ρ of each predictor with the damage of a deletion, depth partialled out, group by group."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tests.studies.prediction.correlation import of_group
from tests.studies.prediction.predictors import BASELINES, GROUPS, SCORES, newest

NAMES = {"smollm2": "SmolLM2-135M", "small": "small (10M)", "tiny": "tiny (0.6M)", "nano": "nano (0.4M)"}
COLOURS = {"role": "#3b6fb6", "weights": "#7a7a7a", "text": "#c0632b", "samples": "#2d8a57"}
KINDS = {"probe": "text", "damage": "text", "own": "samples"}  # by the first word of a column


def draw(layers: pd.DataFrame, target: Path) -> None:
    """Write the figure to `target`, a PNG."""
    layers = newest(layers)
    drawn = {name: column for name, column in (SCORES | BASELINES).items() if column != "depth"}
    drawn |= {"deletion on its own samples": "own.layer", "damage on other text": "damage.layer.a"}
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        figure = Figure(figsize=(10.5, 6.2), layout="constrained")
        for axes, group in zip(figure.subplots(1, len(GROUPS), sharey=True), GROUPS, strict=True):
            of = layers[layers["group"] == group]
            for place, (name, column) in enumerate(drawn.items()):
                outcome = "damage.layer.b" if column == "damage.layer.a" else "damage.layer"
                rho = of_group(of, column, outcome, ("depth",))
                colour = COLOURS["role" if name in SCORES else KINDS.get(column.split(".")[0], "weights")]
                if np.isfinite(rho.value):
                    axes.plot([rho.low, rho.high], [place, place], color=colour, linewidth=1.4, alpha=0.6)
                    axes.plot(rho.value, place, "o", color=colour, markersize=5)
            axes.axvline(0, color="#999999", linewidth=0.8)
            models = of["run"].nunique()
            axes.set(xlim=(-1, 1), title=f"{NAMES[group]}\n{models} × {len(of) // models} layers")
            axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−.5", "0", ".5", "1"])
            axes.grid(axis="y", color="#eeeeee")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        figure.axes[0].set_yticks(range(len(drawn)), list(drawn))
        figure.axes[0].invert_yaxis()
        figure.supxlabel("Spearman's ρ with the rise of the loss when the layer is deleted, depth partialled out")
        figure.savefig(target, dpi=160)
