"""Loss drops where readings lie unequally far apart."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.forensics.trajectory.loss_drops import clock, drops_in, evaluated

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
    assert not drops_in([(0, 4.0), (9200, 3.0)], uneven).any()


def test_the_clock_ticks_alike_at_doublings_and_at_equal_distances() -> None:
    pythia = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 20000, 1000)]
    ticks = np.diff(clock(pythia))
    assert ticks == pytest.approx(1.0, abs=0.12)
    assert ticks[-1] == pytest.approx(1.0)
    assert clock(pythia)[5] - clock(pythia)[4] == pytest.approx(1.0)  # from 8 to 16
    assert np.diff(clock(STEPS))[7] == pytest.approx(np.log2(80 / 64))  # where the two meet
    assert clock([50, 60, 70]).tolist() == [0, 1, 2]
    gap = np.diff(clock([*range(0, 100, 10), *range(110, 200, 10)]))  # 100 was left out
    assert gap[9] == pytest.approx(2 * gap[10])


def test_a_drop_early_in_a_run_is_found() -> None:
    steps = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 16000, 1000)]
    rng = np.random.default_rng(0)
    at = np.arange(0, 15001, 100)
    losses = 3 * (1 + at / 50) ** -0.3 + 0.002 * rng.standard_normal(at.size) - 0.5 * (at > 2900)
    curve = [(int(step), float(loss)) for step, loss in zip(at, losses, strict=True)]
    judged = evaluated(steps, curve)
    assert judged == [0, 128, 256, 512, *range(1000, 16000, 1000)]  # the others lie between two evaluations
    (found,) = np.flatnonzero(drops_in(curve, judged))
    assert judged[1 + found] == 2000


@pytest.mark.parametrize("at", [700, 1500])
def test_a_drop_is_found_where_it_is(at: int) -> None:
    (found,) = np.flatnonzero(drops_in(curve_of(at, noise=1e-4), STEPS))
    assert STEPS[1 + found] <= at < STEPS[2 + found]
