"""Render HTML from the templates beside this module and those that all pages share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from orchestrator.analysis.findings import Scale
from orchestrator.analysis.formatting import elide, seed_list
from orchestrator.analysis.report.glossary import GLOSSARY, term_of
from orchestrator.common.palette import arm_line
from orchestrator.common.web.pages import environment
from orchestrator.forensics.roles.palette import background, letter


@dataclass(frozen=True)
class Axis:
    """A `Scale` in pixels from the left edge, and as text."""

    WIDTH: ClassVar[int] = 260

    estimate: float
    interval: tuple[float, float] | None
    none: float
    band: tuple[float, float]
    beyond: list[tuple[float, str]]  # an arrow for each end of the interval that lies outside
    sides: tuple[str, str]
    words: str


def axis_of(s: Scale) -> Axis | None:
    """Return the scale, at least 2.5 times as wide as its band; None for a loss of 0, which has no band."""
    reach = 2.5 * max(s.none - s.band[0], s.band[1] - s.none, abs(s.value - s.none) / 2)
    if not reach:
        return None
    first, last = s.none - reach, s.none + reach

    def at(value: float) -> float:
        return round(10 + (Axis.WIDTH - 20) * (min(max(value, first), last) - first) / (last - first), 1)

    none = f"{s.none:g} is no difference, and {s.band[0]:.3g} to {s.band[1]:.3g} counts as none"
    sides = f"left: {s.sides[0]}, right: {s.sides[1]}"
    interval, beyond, within = None, [], ""
    if s.low is not None and s.high is not None:
        interval = at(s.low), at(s.high)
        beyond += [(interval[0], "‹")] if s.low < first else []
        beyond += [(interval[1], "›")] if s.high > last else []
        within = f", {s.level} % interval {s.low:.4g} to {s.high:.4g}"
    words = f"Estimate {s.value:.4g}{within}; {none}; {sides}."
    return Axis(at(s.value), interval, at(s.none), (at(s.band[0]), at(s.band[1])), beyond, s.sides, words)


ENVIRONMENT = environment("orchestrator.analysis.report", GLOSSARY)
ENVIRONMENT.filters |= {
    "arm_colour": lambda index: arm_line(index).colour,
    "axis": axis_of,
    "elide": elide,
    "letter": letter,
    "background": background,
    "seed_list": seed_list,
    "term": term_of,
    "thousands": "{:,}".format,
}


def render(template: str, **values: Any) -> str:
    """Render a template, such as `report.html.j2`."""
    return ENVIRONMENT.get_template(template).render(**values) + "\n"
