"""The letter and the colours of each role, for every figure and terminal table.

The colours are Okabe & Ito's: readers with any common colour deficiency can tell them, and their paler shades, apart.
"""

from __future__ import annotations

from typing import NamedTuple


class Mark(NamedTuple):
    """Letter and colours of a role."""

    letter: str
    colour: str
    palest: str  # of a role that few seeds have


MARKS = {  # a mark for each of `routing.ROLES`
    "hub": Mark("H", "#0072B2", "#5F81FF"),
    "damper": Mark("D", "#D55E00", "#EFA166"),
    "passthrough": Mark("P", "#009E73", "#5CC1A5"),
    "specialist": Mark("S", "#CC79A7", "#D6ACCD"),
}
TIE = Mark("·", "#CCCCCC", "#EFEFEF")  # of a tie such as hub/specialist
NONE = Mark("–", TIE.colour, TIE.palest)  # of a layer without a role: a third grey could not be told from both


def mark(role: str) -> Mark:
    """The role's mark; `TIE` for a tie, `NONE` for anything else."""
    return MARKS.get(role, TIE if "/" in role or role == "tie" else NONE)


def letter(role: str) -> str:
    """H, D, P or S; a dot for a tie, a dash for no role."""
    return mark(role).letter


def colour(role: str) -> str:
    """The role's full colour."""
    return mark(role).colour


def background(role: str) -> str:
    """The role's background in CSS: its colour; of a tie such as damper/hub both, half and half."""
    parts = role.split("/")
    if len(parts) == 1:
        return colour(role)
    return f"linear-gradient(135deg, {colour(parts[0])} 50%, {colour(parts[1])} 50%)"
