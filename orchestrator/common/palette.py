"""Give each arm a colour, dash and symbol for every figure; those of roles are in `forensics/roles/palette.py`.

Readers with any common colour deficiency can tell the colours apart, on white and on black.
"""

from __future__ import annotations

from typing import NamedTuple


class Line(NamedTuple):
    """The style of an arm's lines."""

    colour: str
    dash: str
    symbol: str


# The lengths are coprime: arms less than 30 places apart differ in two of the three, less than 210 apart in one.
COLOURS = ("#6C6C78", "#C0840C", "#0090FC", "#9C60B4", "#24906C", "#C05448")
DASHES = ("solid", "dash", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down")


def arm_line(index: int) -> Line:
    """Return the style of the arm with this index; the baseline has 0."""
    return Line(*(kinds[index % len(kinds)] for kinds in (COLOURS, DASHES, SYMBOLS)))
