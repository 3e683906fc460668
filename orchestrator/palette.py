"""One colour and one letter per role, one colour, dash and symbol per arm, for every figure and terminal table.

Role colours are Okabe & Ito's: they stay apart for readers with any of the common colour deficiencies. Arms have
tones that show on white and on black, and never lean on colour alone.
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


class Line(NamedTuple):
    """How an arm is drawn."""

    colour: str
    dash: str
    symbol: str


ARMS = (
    Line("#777777", "solid", "circle"),
    Line("#C98300", "solid", "diamond"),
    Line("#3B97D3", "dash", "square"),
    Line("#A05FB4", "dashdot", "triangle-up"),
    Line("#2E8B6E", "longdash", "x"),
    Line("#C0504D", "longdashdot", "star"),
)


def letter(role: str) -> str:
    """H, D, P or S; a dot for a tie such as `hub/specialist`."""
    return ROLES.get(role, TIE)[0]


def colour(role: str) -> str:
    return ROLES.get(role, TIE)[1]


def arm_line(index: int) -> Line:
    return ARMS[index % len(ARMS)]


def faded(paint: str, share: float) -> str:
    """The colour `#rrggbb` mixed with white: all of it at share 1, a quarter of it at 0."""
    keep = 0.25 + 0.75 * share
    parts = (int(paint[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - keep * (255 - part)):02x}" for part in parts)
