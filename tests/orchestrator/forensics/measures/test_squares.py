"""The law of squared entries against a sort of all of them, in hostile matrices too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from orchestrator.forensics.measures.squares import Squares, squares

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def _outlier(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    w = rng.normal(size=shape)
    w[-1, -1] = 1e6
    return w


DRAWS: dict[str, Draw] = {
    "gaussian": lambda rng, shape: rng.normal(size=shape),
    "t(2)": lambda rng, shape: rng.standard_t(2, shape),
    "one huge entry": _outlier,
    "tiny": lambda rng, shape: 1e-12 * rng.normal(size=shape),
    "nearly equal": lambda rng, shape: 1 + 1e-3 * rng.normal(size=shape),
    "mostly zero": lambda rng, shape: rng.normal(size=shape) * (rng.uniform(size=shape) < 0.01),
    "two values": lambda rng, shape: rng.choice([1.0, 2.0], shape),
}


def _law(w: np.ndarray, apart: int) -> Squares:
    return squares(torch.from_numpy(w.astype(np.float32)), apart)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("shape", [(4000, 100), (100, 4000), (30, 1)])
def test_the_largest_and_the_moments_of_the_others(draw: str, shape: tuple[int, int]) -> None:
    w, apart = DRAWS[draw](np.random.default_rng(0), shape), shape[0]
    law = _law(w, apart)
    sorted_ones = np.sort(np.square(w.astype(np.float32)).astype(np.float64).ravel())
    np.testing.assert_allclose(law.largest, sorted_ones[-apart:], rtol=1e-6)
    assert law.share == apart / w.size
    others = sorted_ones[:-apart] if w.size > apart else np.zeros(1)
    mean, unit = others.mean(), max(others.max(), np.finfo(float).tiny)
    assert law.mean == pytest.approx(mean, rel=1e-5)
    assert law.variance == pytest.approx(others.var(), rel=1e-3, abs=1e-9 * unit**2)
    assert law.third == pytest.approx(((others - mean) ** 3).mean(), rel=1e-3, abs=1e-9 * unit**3)


def test_no_order_of_the_entries_and_no_sign_changes_it() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_t(3, (4000, 100))
    law, other = _law(w, 4000), _law(-rng.permutation(w.ravel()).reshape(100, 4000), 4000)
    np.testing.assert_array_equal(law.largest, other.largest)
    assert (law.mean, law.variance, law.third) == pytest.approx((other.mean, other.variance, other.third), rel=1e-5)


@pytest.mark.parametrize("times", [3.7, 1e-8, 1e8])
def test_of_a_matrix_times_a_number_it_is_the_same_law(times: float) -> None:
    w = np.random.default_rng(0).standard_t(4, (300, 40))
    law, other = _law(w, 300), _law(times * w, 300)
    np.testing.assert_allclose(other.largest / times**2, law.largest, rtol=1e-6)
    for power, moment in enumerate(("mean", "variance", "third"), start=1):
        assert getattr(other, moment) / times ** (2 * power) == pytest.approx(getattr(law, moment), rel=1e-4)
