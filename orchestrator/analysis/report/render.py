"""HTML from the templates beside this module. They escape every name and value, and fail on one that is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from orchestrator.analysis.findings import Scale
from orchestrator.analysis.formatting import elide, seed_list
from orchestrator.analysis.report.glossary import GLOSSARY, term_of
from orchestrator.common.palette import arm_line
from orchestrator.forensics.roles.palette import colour, letter

TEMPLATES = PackageLoader("orchestrator.analysis.report")


@dataclass(frozen=True)
class Axis:
    """A `Scale` in pixels from the left edge, and in words."""

    WIDTH: ClassVar[int] = 260

    estimate: float
    interval: tuple[float, float] | None
    none: float
    band: tuple[float, float]
    beyond: list[tuple[float, str]]  # an arrow at each end of the interval that lies outside
    sides: tuple[str, str]
    words: str


def axis_of(s: Scale) -> Axis | None:
    """The scale, 2.5 times as wide as its band or more; None for a loss of 0, which has no band."""
    reach = 2.5 * max(s.none - s.band[0], s.band[1] - s.none, abs(s.value - s.none) / 2)
    if not reach:
        return None
    first, last = s.none - reach, s.none + reach

    def at(value: float) -> float:
        return round(10 + (Axis.WIDTH - 20) * (min(max(value, first), last) - first) / (last - first), 1)

    none = f"no difference is {s.none:g}, {s.band[0]:.3g} to {s.band[1]:.3g} counts as none"
    sides = f"left: {s.sides[0]}, right: {s.sides[1]}"
    interval, beyond, within = None, [], ""
    if s.low is not None and s.high is not None:
        interval = at(s.low), at(s.high)
        beyond += [(interval[0], "‹")] if s.low < first else []
        beyond += [(interval[1], "›")] if s.high > last else []
        within = f", {s.level} % interval {s.low:.4g} to {s.high:.4g}"
    words = f"Estimate {s.value:.4g}{within}; {none}; {sides}."
    return Axis(at(s.value), interval, at(s.none), (at(s.band[0]), at(s.band[1])), beyond, s.sides, words)


def code(text: str) -> Markup:
    """The text with what is between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def asset(name: str) -> Markup:
    """A style sheet or script of the templates' directory, as it is."""
    return Markup(TEMPLATES.get_source(ENVIRONMENT, name)[0])


ENVIRONMENT = Environment(
    loader=TEMPLATES, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
ENVIRONMENT.globals |= {"GLOSSARY": GLOSSARY, "asset": asset}
ENVIRONMENT.filters |= {
    "arm_colour": lambda index: arm_line(index).colour,
    "axis": axis_of,
    "code": code,
    "colour": colour,
    "elide": elide,
    "letter": letter,
    "seed_list": seed_list,
    "term": term_of,
    "thousands": "{:,}".format,
}


def render(template: str, **values: Any) -> str:
    """The page of a template, such as `report.html.j2`."""
    return ENVIRONMENT.get_template(template).render(**values) + "\n"
