"""One colour and one letter per role, one colour, dash and symbol per arm, for every figure and terminal table.

Role colours are Okabe & Ito's: readers with any common colour deficiency can tell them, and their paler shades, apart.
They can tell the arms' colours apart as well, on white and on black; each arm also has its own dash and symbol.
"""

from __future__ import annotations

from typing import NamedTuple

ROLES = {
    "hub": ("H", "#0072B2"),
    "damper": ("D", "#D55E00"),
    "passthrough": ("P", "#009E73"),
    "specialist": ("S", "#CC79A7"),
}
TIE = ("·", "#CCCCCC")
PALEST = {"hub": "#5F81FF", "damper": "#EFA166", "passthrough": "#5CC1A5", "specialist": "#D6ACCD"}
PALEST_TIE = "#EFEFEF"


class Line(NamedTuple):
    """How an arm is drawn."""

    colour: str
    dash: str
    symbol: str


# The lengths are coprime: arms less than 30 places apart differ in two of the three, less than 210 apart in one.
COLOURS = ("#6C6C78", "#C0840C", "#0090FC", "#9C60B4", "#24906C", "#C05448")
DASHES = ("solid", "dash", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down")


def letter(role: str) -> str:
    """H, D, P or S; a dot for a tie such as `hub/specialist`."""
    return ROLES.get(role, TIE)[0]


def colour(role: str) -> str:
    return ROLES.get(role, TIE)[1]


def palest(role: str) -> str:
    """The colour for a role that few seeds have."""
    return PALEST.get(role, PALEST_TIE)


def arm_line(index: int) -> Line:
    """The line of the arm with this index; the baseline has 0."""
    return Line(*(kinds[index % len(kinds)] for kinds in (COLOURS, DASHES, SYMBOLS)))
