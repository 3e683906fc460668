"""Numbers that round to nothing or are not known are written as such."""

from __future__ import annotations

import math

import pytest

from orchestrator.analysis.formatting import low_to_high, number
from orchestrator.common.formatting import signed


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [
        (0.0, "0.00", "0.00"),
        (-0.0, "0.00", "0.00"),
        (-0.00001, "0.00", "0.00"),
        (0.00001, "0.00", "0.00"),
        (-0.01, "−0.01", "−0.01"),
        (1.5, "1.50", "+1.50"),
        (None, "–", "–"),
        (math.nan, "–", "–"),
    ],
)
def test_what_rounds_to_zero_has_no_sign(value: float | None, plain: str, with_sign: str) -> None:
    assert (number(value, 2), signed(value, 2)) == (plain, with_sign)


def test_an_interval_needs_both_ends() -> None:
    assert low_to_high(-0.001, 0.2, 2, plus=True) == "0.00 … +0.20"
    assert low_to_high(math.nan, 0.2, 2) == low_to_high(0.2, None, 2) == "–"
