"""Pieces of HTML from plain values. Whatever comes from names or data is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from urllib.parse import quote

from orchestrator.analysis.report.glossary import GLOSSARY, term_of
from orchestrator.analysis.sections.section import Cell, Link, Section
from orchestrator.analysis.story import Finding, Scale
from orchestrator.analysis.wording import elide
from orchestrator.common.palette import colour, letter

LONG = 36  # characters of a cell, beyond which it may break
WIDE, HIGH = 260, 50  # of a scale, in pixels
SIDE, NAME = 18, 26  # characters of a side of a scale and of a term that have room


def define(term: str | None, *, named: bool = False) -> str:
    """A mark that leads to the term's definition: a question mark, or its name."""
    if term is None:
        return ""
    title = escape(GLOSSARY[term].title)
    return (
        f"<a class='define{' named' if named else ''}' href='#define-{term}' title='{title}' "
        f"aria-label='Definition: {title}'>{escape(elide(GLOSSARY[term].title, NAME)) if named else '?'}</a>"
    )


def glossary() -> str:
    """All definitions, in the order of the file."""
    entries = (
        f"<div id='define-{key}' class='term'><dt>{escape(term.title)}</dt><dd>{_code(term.text)}</dd></div>"
        for key, term in GLOSSARY.items()
    )
    return f"<dl>{''.join(entries)}</dl>"


def _code(text: str) -> str:
    """Escaped, and what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def table(section: Section, *, level: int = 3, marked: bool = True) -> str:
    """A section as a table with its notes under it; `marked` with what its heads mean.

    Its columns sort on a click, unless it has a quantity in every row, which then carry the marks.
    """
    by_row = not section.columns[0]
    terms = {name: section.terms.get(name, term_of(name)) if marked else None for name in _heads(section, by_row)}
    head = "".join(
        f"<th scope='col'>{escape(name) if by_row else f'<button>{escape(name)}</button>'}{define(terms[name])}</th>"
        if name
        else "<td></td>"
        for name in section.columns
    )
    rows = "".join(
        f"<tr><th scope='row'{_wraps(first)}>{cell(first)}{define(terms.get(str(first))) if by_row else ''}</th>"
        f"{''.join(f'<td{_wraps(value)}>{cell(value)}</td>' for value in rest)}</tr>"
        for first, *rest in section.rows
    )
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in section.notes)
    return (
        f"<h{level}>{escape(section.title)}</h{level}><div class='scroll'><table class='{'' if by_row else 'sorts'}' "
        f"aria-label='{escape(section.title)}'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes}"
    )


def _heads(section: Section, by_row: bool) -> list[str]:
    return [*section.columns, *(str(row[0]) for row in section.rows if by_row)]


def _wraps(value: Cell) -> str:
    return " class='wrap'" if isinstance(value, str) and len(value) > LONG else ""


def cell(value: Cell) -> str:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, Link):
        return f"<a href='{quote(value.path)}'>{escape(value.text)}</a>"
    return "".join(
        f"<span class='role' style='background:{colour(role)}' title='{escape(role)}'>"
        f"{escape(role) if value.words else letter(role)}</span>"
        for role in value.roles
    )


def card(finding: Finding) -> str:
    """One finding: the question, the answer, how sure it is, the figures."""
    return (
        f"<article class='card {'sure' if finding.sure else 'open'}'><h3>{escape(finding.question)}</h3>"
        f"<p class='answer'>{escape(finding.answer)}</p>"
        f"<p class='certainty'>{'decided by these data' if finding.sure else 'not decided by these data'}</p>"
        f"{scale(finding.scale) if finding.scale else ''}<p>{escape(finding.sentence)}</p>"
        f"<p class='terms'>{''.join(define(term, named=True) for term in finding.terms)}</p></article>"
    )


def scale(s: Scale) -> str:
    """The estimate, its interval, the value of no difference and the band that counts as none, on one line."""
    reach = 2.5 * max(s.none - s.band[0], s.band[1] - s.none, abs(s.value - s.none) / 2)
    if not reach:
        return ""  # a loss of 0 has no band, and nothing differs
    first, last = s.none - reach, s.none + reach

    def at(value: float) -> float:
        return round(10 + (WIDE - 20) * (min(max(value, first), last) - first) / (last - first), 1)

    interval = ""
    if s.low is not None and s.high is not None:
        interval = f"<line class='interval' x1='{at(s.low)}' x2='{at(s.high)}' y1='17' y2='17'/>"
        for value, end in ((s.low, "‹" if s.low < first else ""), (s.high, "›" if s.high > last else "")):
            interval += f"<text x='{at(value)}' y='22' text-anchor='middle'>{end}</text>" if end else ""
    within = "" if s.low is None or s.high is None else f", {s.level} % interval {s.low:.4g} to {s.high:.4g}"
    none = f"no difference is {s.none:g}, {s.band[0]:.3g} to {s.band[1]:.3g} counts as none"
    words = f"Estimate {s.value:.4g}{within}; {none}; left: {s.sides[0]}, right: {s.sides[1]}."
    return (
        f"<svg class='scale' viewBox='0 0 {WIDE} {HIGH}' width='{WIDE}' height='{HIGH}' role='img' "
        f"aria-label='{escape(words)}'><title>{escape(words)}</title>"
        f"<rect class='band' x='{at(s.band[0])}' y='4' width='{round(at(s.band[1]) - at(s.band[0]), 1)}' height='26'/>"
        f"<line class='none' x1='{at(s.none)}' x2='{at(s.none)}' y1='2' y2='32'/>{interval}"
        f"<circle class='estimate' cx='{at(s.value)}' cy='17' r='5'/>"
        f"<text class='side' x='2' y='46'>← {escape(elide(s.sides[0], SIDE))}</text>"
        f"<text class='side' x='{WIDE - 2}' y='46' text-anchor='end'>{escape(elide(s.sides[1], SIDE))} →</text></svg>"
    )


def bullets(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
