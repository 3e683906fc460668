"""Roles and arms stay apart without colour, and with it also for readers with colour deficiencies."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from colorspacious import cspace_convert, deltaE

from orchestrator.compare.migration import STATES
from orchestrator.palette import ARMS, ROLES, TIE, colour, faded, letter

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
    paints = [paint for _, paint in (*ROLES.values(), TIE)]
    for a, b in combinations(paints, 2):
        assert deltaE(seen(a, deficiency), seen(b, deficiency), input_space="sRGB1") > 4 * JUST_NOTICEABLE


@pytest.mark.parametrize("deficiency", [None, "deuteranomaly", "protanomaly", "tritanomaly"])
def test_the_first_arms_stay_apart(deficiency: str | None) -> None:
    for a, b in combinations(ARMS[:3], 2):
        assert deltaE(seen(a.colour, deficiency), seen(b.colour, deficiency), input_space="sRGB1") > 4 * JUST_NOTICEABLE


def test_arms_differ_without_colour() -> None:
    assert len({arm.symbol for arm in ARMS}) == len({(arm.dash, arm.symbol) for arm in ARMS}) == len(ARMS)


@pytest.mark.parametrize("ground", ["#ffffff", "#14171b"])
def test_arms_show_on_both_grounds(ground: str) -> None:
    for arm in ARMS:
        assert contrast(arm.colour, ground) >= 3.0  # WCAG 2.1, 1.4.11: graphical objects


def test_letters_tell_roles_apart_without_colour() -> None:
    assert [letter(role) for role in (*STATES, "damper/hub")] == ["H", "D", "P", "S", "·", "·"]
    assert len({colour(role) for role in STATES}) == len(STATES)


def test_a_faded_colour_lies_between_white_and_itself() -> None:
    assert faded("#0072b2", 1.0) == "#0072b2"
    assert faded("#000000", 0.0) == "#bfbfbf"
