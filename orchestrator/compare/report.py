"""`verdict.json` and a first, self-contained `report.html`."""

from __future__ import annotations

import json
from dataclasses import asdict
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from orchestrator.compare.comparison import Comparison
from orchestrator.compare.migration import roles_of
from orchestrator.compare.multipliers import agreement
from orchestrator.compare.palette import ROLES, colour, letter
from orchestrator.compare.section import Roles, Section
from orchestrator.compare.sections import sections
from orchestrator.files import write_whole

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th { font-weight: 600; color: #666; white-space: pre-line; vertical-align: bottom }
th, td { padding: .15rem .7rem .15rem 0; text-align: left } tbody tr:nth-child(even) { background: #f6f6f6 }
.role { display: inline-block; color: #fff; border-radius: 3px; padding: 0 .4em; margin-right: .3em }
.role.tie { color: #222 } .dim { color: #666 }
"""


def write(c: Comparison, figures: dict[str, go.Figure]) -> None:
    """Write both files into the comparison's directory."""
    content = json.dumps(verdict(c), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(c.directory / "verdict.json", content + "\n")
    write_whole(c.directory / "report.html", page(c, figures))


def verdict(c: Comparison) -> dict[str, Any]:
    """What was found, as plain JSON values; null is what cannot be said."""
    e = c.experiment
    return {
        "schema": 1,
        "name": e.name,
        "question": e.question,
        "arms": e.arms,
        "parameters": e.parameters,
        "seeds": e.seeds,
        "pairs": [{"arm": pair.arm, "seed": pair.seed} for pair in c.pairs],
        "incomplete": [asdict(pair) for pair in c.left_out],
        "cells": {cell.label: cell.missing or "complete" for cell in e.cells},
        "losses": [asdict(result) for result in c.statistics],
        "contrasts": [asdict(result) for result in c.contrasts],
        "sidecar": {
            arm: {
                channel: {"units": len(a.units), "agreeing": a.agreeing, "by_chance": a.by_chance, "seeds": a.seeds}
                for channel, a in agreement(c.cells_of(arm)).items()
            }
            for arm in e.arms
        },
        "symmetry": [asdict(result) for result in c.symmetry],
        "conservation": [asdict(result) for result in c.conservation],
        "transitions": [asdict(result) for result in c.transitions],
        "role_shifts": [asdict(result) for result in c.role_shifts],
        "coincidences": [asdict(result) for result in c.coincidences],
        "roles": {
            arm: {
                str(cell.seed): {"step": reading["step"], "roles": roles_of(reading)}
                for cell in e.cells
                if cell.arm == arm and (reading := cell.last_reading) is not None
            }
            for arm in e.arms
        },
        "notes": c.notes,
    }


def page(c: Comparison, figures: dict[str, go.Figure]) -> str:
    """The report as one HTML page that needs no network; text from names and data is escaped."""
    e = c.experiment
    arms = ", ".join(f"{a} ({e.parameters[a]:,} parameters)" if a in e.parameters else a for a in e.arms)
    facts = [f"Arms: {arms}. Seeds: {', '.join(map(str, e.seeds))}. Complete pairs: {len(c.pairs)}."]
    facts += [f"Left out: {cells}: {reason}." for cells, reason in c.incomplete_cells]
    title = escape(e.question or e.name)
    body = [
        f"<h1>{title}</h1><p class='dim'>{escape(e.name)}</p>",
        *(f"<p>{escape(fact)}</p>" for fact in facts),
        *(_section(section) for section in sections(c)),
        "<h2>Read with care</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in c.notes) + "</ul>",
        *(figure.to_html(full_html=False, include_plotlyjs=False) for figure in figures.values()),
    ]
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _section(section: Section) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in section.columns)
    rows = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in section.rows)
    notes = "".join(f"<p class='dim'>{escape(note)}</p>" for note in section.notes)
    return f"<h2>{escape(section.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"


def _cell(value: str | Roles) -> str:
    if isinstance(value, str):
        return escape(value)
    return "".join(
        f"<span class='role{'' if role in ROLES else ' tie'}' style='background:{colour(role)}' title='{escape(role)}'>"
        f"{escape(role) if value.words else letter(role)}</span>"
        for role in value.roles
    )
