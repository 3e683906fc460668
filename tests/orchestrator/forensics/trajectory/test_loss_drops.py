"""Loss drops where readings lie unequally far apart."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.forensics.trajectory.loss_drops import drops_in

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, *range(80, 2480, 80)]


def curve_of(drop_at: int | None = None, noise: float = 0.0) -> list[tuple[int, float]]:
    """A power law at every fourth step, and at the early readings; with a drop of 0.1 there if `drop_at`."""
    rng = np.random.default_rng(0)
    steps = sorted({*STEPS, *range(0, 2401, 4)})
    fall = [0.0 if drop_at is None or step <= drop_at else 0.1 for step in steps]
    return [
        (step, 2 + 3 * (1 + step / 20) ** -0.7 - of + noise * rng.standard_normal())
        for step, of in zip(steps, fall, strict=True)
    ]


def test_an_interval_is_no_drop_because_it_is_long() -> None:
    assert not drops_in(curve_of(), STEPS).any()
    uneven = [0, 1, 2, 4, 512, 1000, 2000, 3000, 3100, 4000, 9000, 9100, 9200]
    assert not drops_in([(0, 4.0), (9200, 3.0)], uneven).any()  # straight: the same everywhere, per step


@pytest.mark.parametrize("at", [300, 700, 1500])
def test_a_drop_is_found_where_it_is(at: int) -> None:
    (found,) = np.flatnonzero(drops_in(curve_of(at, noise=1e-4), STEPS))
    assert STEPS[1 + found] <= at < STEPS[2 + found]
