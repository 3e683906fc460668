"""Our mixtures against scikit-learn's, on positions of known kinds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from orchestrator.forensics.measures.clusters import SMALLEST, best_mixture, cluster_masses, fit


def _planted(seed: int, masses: tuple[float, ...], distance: float, n: int = 800, features: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = [round(mass * n) for mass in masses]
    centres = rng.normal(size=(len(masses), features))
    centres *= distance / np.linalg.norm(centres, axis=1, keepdims=True)
    return np.concatenate([c + rng.normal(size=(k, features)) for c, k in zip(centres, counts, strict=True)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("masses", [(1.0,), (0.7, 0.3), (0.5, 0.3, 0.2)])
def test_number_and_masses_agree_with_sklearn(masses: tuple[float, ...], seed: int) -> None:
    x = _planted(seed, masses, 8.0)
    got = cluster_masses(x)
    assert got is not None
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    rivals = [GaussianMixture(k, n_init=3, reg_covar=1e-4, random_state=0).fit(standard) for k in range(1, 6)]
    rival = min(rivals, key=lambda mixture: mixture.bic(standard))
    expected = np.sort(np.bincount(rival.predict(standard), minlength=rival.n_components) / len(x))[::-1]
    assert len(got) == len(expected) == len(masses)
    np.testing.assert_allclose(got, expected, atol=0.05)
    assert got.sum() == pytest.approx(1)


def test_likelihood_and_bic_are_sklearns() -> None:
    x = _planted(0, (0.6, 0.4), 6.0)
    ours, rival = fit(x, 2), GaussianMixture(2, n_init=3, reg_covar=1e-4, random_state=0).fit(x)
    assert ours.bic(x) == pytest.approx(rival.bic(x), rel=1e-3)


def test_a_handful_of_odd_positions_is_a_cluster_and_one_is_not_counted() -> None:
    x = _planted(0, (1.0,), 0.0, n=2000)
    x[:40] += 12.0
    masses = cluster_masses(x)
    assert masses is not None
    assert (masses >= SMALLEST).sum() == 2
    x = _planted(0, (1.0,), 0.0, n=2000)
    x[0] += 30.0
    masses = cluster_masses(x)
    assert masses is not None
    assert (masses >= SMALLEST).sum() == 1


def test_nothing_to_tell_positions_apart() -> None:
    assert cluster_masses(np.ones((50, 6))) is None
    assert cluster_masses(np.random.default_rng(0).normal(size=(6, 6))) is None  # fewer positions than needed
    x = np.random.default_rng(0).normal(size=(300, 6))
    x[:, 2:] = 3.0  # constant features are dropped
    assert cluster_masses(x) == pytest.approx([1.0])


def test_repeats_itself_and_survives_equal_points() -> None:
    x = np.repeat(np.random.default_rng(0).normal(size=(20, 3)), 30, axis=0)
    first, second = cluster_masses(x), cluster_masses(x)
    assert first is not None
    np.testing.assert_array_equal(first, second)
    assert len(best_mixture(x).weights) <= 8
