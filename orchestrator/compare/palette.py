"""One colour and one letter per role, one colour per arm, for every figure and every terminal table.

Okabe & Ito's palette: its colours stay apart for readers with any of the common colour deficiencies.
"""

from __future__ import annotations

ROLES = {
    "hub": ("H", "#0072B2"),
    "damper": ("D", "#D55E00"),
    "passthrough": ("P", "#009E73"),
    "specialist": ("S", "#CC79A7"),
}
TIE = ("·", "#BBBBBB")
ARMS = ("#000000", "#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#009E73")


def letter(role: str) -> str:
    """H, D, P or S; a dot for a tie such as `hub/specialist`."""
    return ROLES.get(role, TIE)[0]


def colour(role: str) -> str:
    return ROLES.get(role, TIE)[1]


def arm_colour(index: int) -> str:
    return ARMS[index % len(ARMS)]
