"""Make W&B panels for the metrics, figures and tables that an experiment's runs logged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

from orchestrator.analysis import figures
from orchestrator.analysis.comparison import Comparison
from orchestrator.forensics.render.row import reading_row
from orchestrator.tracking.rows import READING, STEP, record_row
from orchestrator.tracking.summaries import cell_summary, comparison_summary, delta_rows


@dataclass(frozen=True)
class Charts:
    """One panel for every metric whose whole name matches."""

    title: str
    metrics: str  # a regular expression
    axis: str | None  # x axis of a line plot; null: a bar for the last value


LOSSES = (
    Charts("Held-out loss, nats/token", r"heldout/.*", STEP),
    Charts("Test loss at the end, nats/token", r"final/test_loss/.*", None),
)
LAYERS = (
    Charts("Roles: layers of each", r"forensics/roles/.*", READING),
    Charts("Specialist budget: saturated FFN positions", r"forensics/saturated\w*", READING),
    Charts("Centre of the budget, 0 (first layer) to 1 (last)", r"forensics/centre/.*", READING),
)
DETAILS = (
    Charts("CV of FFN co-magnitude, layer by layer", r"forensics/cv/.*", READING),
    Charts("Sidecar", r"sidecar/(reward|advantage|summary/.*)", STEP),
    Charts("Training", r"train/.*", STEP),
)
DELTAS = Charts("Held-out loss minus the baseline's, nats/token", r"delta/.*", STEP)
PAIRS = Charts("First arm beside the baseline", r"pair/(test_loss/delta|centre/\w+/delta|budget/\w+/ratio)", None)


def logged(c: Comparison) -> list[str]:
    """Return the names of all metrics that the cells and the comparison logged, in order."""
    rows: list[dict[str, Any]] = []
    for cell in c.experiment.cells:
        rows += [record_row(record) for record in cell.metrics]
        rows += [reading_row(reading) for reading in cell.readings.values()]
        rows += [cell_summary(cell)] if cell.metrics else []
    rows += [*delta_rows(c), comparison_summary(c)]
    return list(dict.fromkeys(name for row in rows for name in row if name not in (STEP, READING)))


def panels(charts: Charts, names: list[str], *, by_arm: bool = True) -> list[Any]:
    """Return the panels of `charts`, one per matching name in `names`."""
    found: list[Any] = []
    for name in names:
        if re.fullmatch(charts.metrics, name):
            title = name.partition("/")[2]
            if charts.axis:
                found.append(wr.LinePlot(title=title, x=charts.axis, y=[name]))
            else:
                found.append(wr.BarPlot(title=title, metrics=[name], groupby=wr.Config("arm") if by_arm else None))
    return found


def figure_panels(c: Comparison) -> list[Any]:
    """Return a panel per figure of the comparison."""
    return [wr.MediaBrowser(title=name, media_keys=[f"figures/{name}"], num_columns=1) for name in figures.draw(c)]


def table_panels(c: Comparison) -> list[Any]:
    """Return a panel per table with rows, over all runs that logged it."""
    return [wr.WeavePanelSummaryTable(table_name=f"tables/{name}") for name, t in c.tables.items() if not t.empty]


def only(runs: Any, **wanted: str) -> Any:
    """Filter `runs` (a runset or a view's settings) by attribute = value for all of `wanted`.

    The filter is set as a loaded one is, because wandb-workspaces converts a given filter to text and parses that,
    which turns `lr=0.1` into `lr==0.1` and an apostrophe into a syntax error.
    """
    equal = [
        expr.Filters(op="=", key=expr.Key(section="run", name=name), value=value) for name, value in wanted.items()
    ]
    runs._stashed_filters_v2 = expr.filters_tree_to_v2(expr.Filters(op="AND", filters=equal))
    runs._stashed_filter_string = ""
    return runs
