"""One colour and one letter per role, one colour, dash and symbol per arm, for every figure and terminal table.

Role colours are Okabe & Ito's: they stay apart for readers with any of the common colour deficiencies, and so do
their paler shades. Arms have tones that do as well, on white and on black, and never lean on colour alone.
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


# Their lengths have no common divisor: two arms agree in all three only 210 places apart, in two of them 30.
COLOURS = ("#6C6C78", "#C0840C", "#0090FC", "#9C60B4", "#24906C", "#C05448")
DASHES = ("solid", "dash", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down")


def letter(role: str) -> str:
    """H, D, P or S; a dot for a tie such as `hub/specialist`."""
    return ROLES.get(role, TIE)[0]


def colour(role: str) -> str:
    return ROLES.get(role, TIE)[1]


def palest(role: str) -> str:
    """The colour for a role that hardly any seed has."""
    return PALEST.get(role, PALEST_TIE)


def arm_line(index: int) -> Line:
    """How the arm at place `index` is drawn; the baseline is at 0."""
    return Line(*(kinds[index % len(kinds)] for kinds in (COLOURS, DASHES, SYMBOLS)))
