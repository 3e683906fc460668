"""Draw every figure, once for files, report and W&B. Add one as a function and a line in `FIGURES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from plotly.offline import get_plotlyjs

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.budget import budget_by_depth, budget_over_time
from orchestrator.analysis.figures.damage import damage_maps
from orchestrator.analysis.figures.health import worst_ratios
from orchestrator.analysis.figures.losses import heldout_curves
from orchestrator.analysis.figures.multipliers import multiplier_maps
from orchestrator.analysis.figures.panels import Drawing
from orchestrator.analysis.figures.profiles import attention_shares, concentration, rank_differences
from orchestrator.analysis.figures.roles import role_maps
from orchestrator.analysis.figures.shape import width_profiles
from orchestrator.analysis.figures.trajectory import commitment_curves
from orchestrator.analysis.figures.transitions import transition_tables
from orchestrator.storage.files import write_whole

__all__ = ["FIGURES", "Drawing", "draw", "write"]

PLOTLY = "plotly.min.js"
# name → chapter of the report, function; in the order of the report
FIGURES: dict[str, tuple[str, Callable[[Comparison], Drawing | None]]] = {
    "layers": ("roles", role_maps),
    "role_migration": ("roles", transition_tables),
    "trajectory": ("trajectory", commitment_curves),
    "paired_eval": ("loss", heldout_curves),
    "conservation": ("budget", budget_by_depth),
    "budget_over_time": ("budget", budget_over_time),
    "flattening": ("layers", concentration),
    "effective_rank": ("layers", rank_differences),
    "attention_share": ("layers", attention_shares),
    "damage": ("damage", damage_maps),
    "sidecar": ("sidecar", multiplier_maps),
    "width": ("shape", width_profiles),
    "pathology": ("health", worst_ratios),
}


def draw(c: Comparison) -> dict[str, Drawing]:
    """Return name → figure, without those that have nothing to show."""
    return {name: drawing for name, (_, build) in FIGURES.items() if (drawing := build(c)) is not None}


def write(drawings: dict[str, Drawing], directory: Path) -> None:
    """Write each figure as `<name>.html`; they share one script beside them and need no network."""
    write_whole(directory / PLOTLY, get_plotlyjs())
    for name, drawing in drawings.items():
        page = drawing.plot.to_html(include_plotlyjs=PLOTLY, config={"showSendToCloud": False, "displaylogo": False})
        write_whole(directory / f"{name}.html", page)
