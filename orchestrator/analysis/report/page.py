"""`report.html`: the answer first, then everything behind it; one file that needs no network."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator
from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures import Drawing
from orchestrator.analysis.report.chapters import Chapter, chapters
from orchestrator.analysis.report.document import document
from orchestrator.analysis.report.html import bullets, card, define, table
from orchestrator.analysis.sections import glance, many_arms
from orchestrator.analysis.story import findings
from orchestrator.analysis.wording import listed
from orchestrator.common.palette import arm_line

TITLE = 44  # pixels that a figure's own title takes, which the page prints instead
DIGITS = "%.6g"  # of the tables inside the page; those beside it have all


def page(c: Comparison, drawings: dict[str, Drawing]) -> str:
    """The whole report; text from names and data is escaped."""
    told = [chapter for chapter in chapters(c) if chapter.sections or any(name in drawings for name in chapter.figures)]
    named = [(chapter.key, chapter.title) for chapter in told] + [("tables", "Tables"), ("definitions", "Definitions")]
    links = "".join(f"<li><a href='#{key}'>{escape(name)}</a></li>" for key, name in named)
    nav = f"<nav aria-label='Chapters'><ul>{links}</ul></nav>"
    parts = [_top(c), *(_chapter(chapter, drawings) for chapter in told)]
    parts.append(f"<section id='tables'><h2>Tables</h2>{_downloads(c)}</section>")
    return document(
        c.experiment.question or c.experiment.name,
        "\n".join(parts),
        header=f"<header>{_header(c)}</header>{nav}",
        footer=_footer(c),
        scripts=("tables.js", "figures.js"),
        data="\n".join(_packed(c, drawings)),
    )


def _header(c: Comparison) -> str:
    e = c.experiment
    arms = [
        f"<svg width='22' height='10' aria-hidden='true'><line x1='0' x2='22' y1='5' y2='5' stroke-width='4' "
        f"stroke='{arm_line(i).colour}'/></svg> {escape(arm)}"
        + (f" <span class='eyebrow'>{e.parameters[arm]:,} parameters</span>" if arm in e.parameters else "")
        + (" <span class='eyebrow'>(baseline)</span>" if i == 0 and len(e.arms) > 1 else "")
        for i, arm in enumerate(e.arms)
    ]
    facts = [("arms", " &nbsp; ".join(arms)), ("seeds", escape(listed(e.seeds)))]
    facts += [("pairs", escape(c.completeness) + define("experiment"))] if len(e.arms) > 1 else []
    facts += [("left out", escape(f"{cells}: {reason}")) for cells, reason in c.incomplete_cells]
    listing = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts)
    heading = f"<p class='eyebrow'>{escape(e.name)}</p><h1>{escape(e.question or e.name)}</h1>"
    return f"{heading}<dl class='facts'>{listing}</dl>"


def _top(c: Comparison) -> str:
    """What a reader should know after ten seconds, and what to know before believing it."""
    found = []
    if many_arms(c):
        found.append(table(glance(c), level=2))
    else:
        for arm in c.compared:
            cards = "".join(map(card, findings(c, arm)))
            found.append(f"<h2>{escape(arm)} against {escape(c.baseline)}</h2><div class='cards'>{cards}</div>")
    if c.notes:
        found.append(f"<aside class='care'><h2>Read with care</h2>{bullets(c.notes)}</aside>")
    return "".join(found)


def _chapter(chapter: Chapter, drawings: dict[str, Drawing]) -> str:
    shown = [_figure(name, drawings[name]) for name in chapter.figures if name in drawings]
    parts = "".join(map(table, chapter.sections))
    return f"<section id='{chapter.key}'><h2>{escape(chapter.title)}</h2>{''.join(shown)}{parts}</section>"


def _figure(name: str, drawing: Drawing) -> str:
    """A place for the figure as high as it will be, its name, and its words."""
    height = int(drawing.plot.layout.height) - TITLE
    marks = "".join(define(term, named=True) for term in drawing.terms)
    return (
        f"<figure><figcaption><span>{escape(drawing.title)}</span>{marks}"
        f"<span class='controls' data-for='{name}'></span></figcaption>"
        f"<div class='scroll'><div class='plot' data-figure='{name}' style='height:{height}px' role='img' "
        f"aria-label='{escape(drawing.title)}' aria-describedby='words-{name}'></div></div>"
        f"<details><summary>In words and numbers</summary><p id='words-{name}'>{escape(drawing.text)}</p>"
        f"{table(drawing.table, marked=False) if drawing.table else ''}</details></figure>"
    )


def _downloads(c: Comparison) -> str:
    buttons = "".join(
        f"<li><button data-table='{name}'>{name}.csv</button> <span class='eyebrow'>{len(frame):,} rows</span></li>"
        for name, frame in c.tables.items()
        if len(frame)
    )
    beside = "Six significant digits; tables/*.parquet and tables/*.csv beside this file have all."
    return f"<ul class='downloads'>{buttons}</ul><p class='note'>{beside}</p>"


def _footer(c: Comparison) -> str:
    versions = {r["definitions"] for cell in c.experiment.cells for r in cell.readings.values() if "definitions" in r}
    scorings = {r["scoring"] for cell in c.experiment.cells for r in cell.readings.values()}
    return (
        f"<p>Roles by {escape(', '.join(sorted(scorings)) or 'no')} scoring; definitions "
        f"{escape(', '.join(map(str, sorted(versions))) or 'unknown')}. The same figures as single pages: figures/; "
        "everything for programs: verdict.json.</p>"
    )


def _packed(c: Comparison, drawings: dict[str, Drawing]) -> Iterator[str]:
    """Plotly, figures and tables, compressed, as inert script elements."""
    yield _pack("plotly", get_plotlyjs())
    for name, drawing in drawings.items():
        plot = go.Figure(drawing.plot)
        margin = plot.layout.margin
        plot.update_layout(title=None, height=plot.layout.height - TITLE, margin={"t": margin.t - TITLE})
        yield _pack(f"figure-{name}", plot.to_json())
    for name, frame in c.tables.items():
        if len(frame):
            short = {key: column.map(DIGITS.__mod__, na_action="ignore") for key, column in _floats(frame)}
            yield _pack(f"table-{name}", frame.assign(**short).to_csv(index=False))


def _floats(frame: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """Its columns of floats; pandas' own `float_format` takes ten times as long over them."""
    yield from ((str(key), column) for key, column in frame.select_dtypes("float64").items())


def _pack(key: str, text: str) -> str:
    packed = base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()
    return f"<script type='application/gzip+base64' id='{key}'>{packed}</script>"
