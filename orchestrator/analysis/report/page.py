"""Render `report.html`: the findings, then everything behind them, in one file that needs no network."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from plotly.io import to_json
from plotly.offline import get_plotlyjs

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures import Drawing
from orchestrator.analysis.findings import findings
from orchestrator.analysis.report.chapters import chapters
from orchestrator.analysis.report.render import render
from orchestrator.analysis.sections import glance, many_arms
from orchestrator.common.web.pages import packed

TITLE = 44  # height of a figure's title, which the page prints itself, pixels
DIGITS = "%.6g"  # in the page's tables; the files beside it have every digit


def page(c: Comparison, drawings: dict[str, Drawing]) -> str:
    """Return the whole report as HTML."""
    readings = [reading for cell in c.experiment.cells for reading in cell.readings.values()]
    tables = {name: frame for name, frame in c.tables.items() if len(frame)}
    return render(
        "report.html.j2",
        c=c,
        every_arm=glance(c) if many_arms(c) else None,
        findings={arm: findings(c, arm) for arm in c.compared},
        chapters=chapters(c, drawings),
        drawings=drawings,
        heights=heights(drawings),
        tables=tables,
        scorings=sorted({reading.scoring for reading in readings}),
        definitions=sorted({reading.definitions for reading in readings}),
        parts=_parts(drawings, tables),
    )


def _parts(drawings: dict[str, Drawing], tables: dict[str, pd.DataFrame]) -> Iterator[tuple[str, str]]:
    """Yield the parts of every figure, and those of every table."""
    yield from figure_parts(drawings)
    for name, frame in tables.items():
        # by column: pandas' own `float_format` takes ten times as long
        floats = frame.select_dtypes("float64").items()
        short = {str(key): column.map(DIGITS.__mod__, na_action="ignore") for key, column in floats}
        yield f"table-{name}", packed(frame.assign(**short).to_csv(index=False))


def heights(drawings: dict[str, Drawing]) -> dict[str, int]:
    """Return the height of each figure on a page, pixels."""
    return {name: int(drawing.plot.layout.height) - TITLE for name, drawing in drawings.items()}


def figure_parts(drawings: dict[str, Drawing]) -> Iterator[tuple[str, str]]:
    """Yield (id, compressed content) of plotly and every figure; figures.js unpacks it."""
    yield "plotly", packed(get_plotlyjs())
    for name, drawing in drawings.items():
        plot = drawing.plot.to_dict()  # a copy
        del plot["layout"]["title"]
        plot["layout"]["height"] -= TITLE
        plot["layout"]["margin"]["t"] -= TITLE
        yield f"figure-{name}", packed(to_json(plot, validate=False))
