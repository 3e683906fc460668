"""Roles and arms stay apart without colour, and with it also for readers with colour deficiencies."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from colorspacious import cspace_convert, deltaE

from orchestrator.analysis.figures.panels import SHOWN_ARMS
from orchestrator.common.palette import COLOURS, arm_line
from orchestrator.forensics.roles.palette import MARKS, TIE, background, colour, letter, mark
from orchestrator.forensics.roles.routing import ROLES

SHADED = (*ROLES, "tie")  # none is as grey as a tie, with another letter
JUST_NOTICEABLE = 2.3  # of CAM02-UCS, roughly; patches that are to be told apart at a glance need several times that


def rgb(paint: str) -> np.ndarray:
    return np.array([int(paint[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def seen(paint: str, deficiency: str | None) -> np.ndarray:
    if deficiency is None:
        return rgb(paint)
    space = {"name": "sRGB1+CVD", "cvd_type": deficiency, "severity": 100}
    return np.clip(cspace_convert(rgb(paint), space, "sRGB1"), 0, 1)


def contrast(paint: str, ground: str) -> float:
    """WCAG 2's ratio of relative luminances."""
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in (rgb(paint), rgb(ground))]
    light, dark = sorted((float(c @ [0.2126, 0.7152, 0.0722]) for c in linear), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("deficiency", [None, "deuteranomaly", "protanomaly", "tritanomaly"])
def test_roles_stay_apart(deficiency: str | None) -> None:
    paints = [mark.colour for mark in (*MARKS.values(), TIE)]
    for a, b in combinations(paints, 2):
        assert deltaE(seen(a, deficiency), seen(b, deficiency), input_space="sRGB1") > 4 * JUST_NOTICEABLE


@pytest.mark.parametrize("deficiency", [None, "deuteranomaly", "protanomaly", "tritanomaly"])
def test_arms_drawn_together_stay_apart(deficiency: str | None) -> None:
    together = [arm_line(i).colour for i in range(SHOWN_ARMS + 1)]  # the baseline is not among those compared with it
    for a, b in combinations(together, 2):
        assert deltaE(seen(a, deficiency), seen(b, deficiency), input_space="sRGB1") > 4 * JUST_NOTICEABLE


def test_arms_differ_without_colour() -> None:
    lines = [arm_line(i) for i in range(30)]
    assert len({(line.dash, line.symbol) for line in lines}) == 30
    assert len({(line.colour, line.dash) for line in lines}) == 30
    for a, b in combinations(lines[: SHOWN_ARMS + 1], 2):
        assert a.colour != b.colour
        assert a.dash != b.dash
        assert a.symbol != b.symbol
    assert "dot" not in {line.dash for line in lines}  # that is chance


@pytest.mark.parametrize("ground", ["#ffffff", "#14171b"])
def test_arms_show_on_both_grounds(ground: str) -> None:
    for paint in COLOURS:
        assert contrast(paint, ground) >= 3.0  # WCAG 2.1, 1.4.11: graphical objects


def test_every_role_has_a_mark() -> None:
    assert tuple(MARKS) == ROLES


def test_letters_tell_roles_apart_without_colour() -> None:
    assert [letter(role) for role in (*ROLES, "tie", "damper/hub", "none", "")] == [*"HDPS··––"]
    assert len({colour(role) for role in SHADED}) == len(SHADED)


def test_a_tie_is_painted_in_both_colours() -> None:
    assert all(colour(role) in background("damper/hub") for role in ("damper", "hub"))
    assert background("hub") == colour("hub")


@pytest.mark.parametrize("deficiency", [None, "deuteranomaly", "protanomaly", "tritanomaly"])
def test_shades_of_roles_stay_apart(deficiency: str | None) -> None:
    def shades(role: str) -> list[np.ndarray]:
        """The colours of 0 %, 25 % … of the seeds on a linear colour scale."""
        pale, full = rgb(mark(role).palest), rgb(colour(role))
        mixed = [(1 - share) * pale + share * full for share in np.linspace(0, 1, 5)]
        return [seen("#" + "".join(f"{round(255 * c):02x}" for c in paint), deficiency) for paint in mixed]

    for a, b in combinations(map(shades, SHADED), 2):
        for one, other in product(a, b):
            assert deltaE(one, other, input_space="sRGB1") > 4 * JUST_NOTICEABLE
    for role in SHADED:
        pale, full = seen(mark(role).palest, deficiency), seen(colour(role), deficiency)
        assert deltaE(pale, full, input_space="sRGB1") > 4 * JUST_NOTICEABLE
