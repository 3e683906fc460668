"""The study's figure: ρ of each predictor with the damage of a deletion, depth partialled out, group by group."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tests.studies.prediction.predictors import BASELINES, GROUPS, OTHER, OWN, PROBED, SCORES

NAMES = {  # of a group: its model, and the layers of each
    "smollm2": "SmolLM2-135M\n{} × 30 layers",
    "small": "small (10M)\n{} × 11 layers",
    "tiny": "tiny (0.6M)\n{} × 11 layers",
    "nano": "nano (0.4M)\n{} × 8 layers",
}
DRAWN = [name for name in (*SCORES, *BASELINES, OWN, OTHER) if name != "depth"]
COLOURS = {"roles": "#3b6fb6", "weights": "#7a7a7a", "with text": "#c0632b", "own samples": "#2d8a57"}
EVERYWHERE, FEW = {"marker": "o"}, {"marker": "o", "markerfacecolor": "white"}


def draw(found: pd.DataFrame, target: Path) -> None:
    """Write the figure of the `correlations` with the damage of whole layers to `target`, a PNG."""
    known = found[found["target"] == "layer"].set_index(["group", "predictor"])
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        figure = Figure(figsize=(10.5, 6.6), layout="constrained")
        for axes, group in zip(figure.subplots(1, len(GROUPS), sharey=True), GROUPS, strict=True):
            axes.axvline(0, color="#999999", linewidth=0.8)
            for place, name in enumerate(DRAWN):
                if (group, name) in known.index:
                    _draw_one(axes, place, known.loc[group, name], COLOURS[_kind(name)])
            axes.set(xlim=(-1, 1), title=NAMES[group].format(known.loc[group, "depth"]["models"]))
            axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−.5", "0", ".5", "1"])
            axes.grid(axis="y", color="#eeeeee")
            axes.set_axisbelow(True)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        figure.axes[0].set_yticks(
            range(len(DRAWN)), [name.replace("the same edit, on the model's", "deletion on its") for name in DRAWN]
        )
        figure.axes[0].invert_yaxis()
        figure.supxlabel("Spearman's ρ with the rise of the loss when the layer is deleted, depth partialled out")
        figure.legend(handles=_signs(), loc="outside upper center", ncols=6, frameon=False)
        figure.savefig(target, dpi=160)


def _draw_one(axes: matplotlib.axes.Axes, place: int, rho: pd.Series, colour: str) -> None:
    """A dot with its interval, hollow where most models have no ρ; a dash where it orders the layers as depth does."""
    if not np.isfinite(rho["partial"]):
        return
    if rho["partial"] == 0 and not np.isfinite(rho["partial_low"]):
        axes.text(0, place, "–", color=colour, ha="center", va="center", fontsize=14, fontweight="bold")
        return
    axes.plot([rho["partial_low"], rho["partial_high"]], [place, place], color=colour, linewidth=1.4, alpha=0.6)
    sign = EVERYWHERE if 2 * rho["defined"] >= rho["models"] else FEW
    axes.plot(rho["partial"], place, color=colour, markersize=5, **sign)


def _kind(name: str) -> str:
    if name in SCORES:
        return "roles"
    return "own samples" if name == OWN else "with text" if name in PROBED or name == OTHER else "weights"


def _signs() -> list[Line2D]:
    """The legend: a colour for each kind of predictor, and the other signs."""
    dots = [Line2D([], [], color=colour, label=kind, marker="o") for kind, colour in COLOURS.items()]
    few = Line2D([], [], color="#333333", linestyle="", label="in few of the models", **FEW)  # type: ignore[arg-type]
    dash = Line2D(
        [], [], color="#333333", linestyle="", marker="$–$", label="orders layers as depth does: no partial ρ"
    )
    return [*dots, few, dash]
