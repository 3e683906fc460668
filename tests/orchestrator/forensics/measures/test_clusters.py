"""Our mixtures against scikit-learn's, on positions of known kinds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from orchestrator.forensics.measures.clusters import SMALLEST, Clusters, best_mixture, clusters, fit


def _planted(seed: int, masses: tuple[float, ...], distance: float, n: int = 800, features: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = [round(mass * n) for mass in masses]
    centres = rng.normal(size=(len(masses), features))
    centres *= distance / np.linalg.norm(centres, axis=1, keepdims=True)
    return np.concatenate([c + rng.normal(size=(k, features)) for c, k in zip(centres, counts, strict=True)])


def _found(x: np.ndarray) -> Clusters:
    found = clusters(x, x[:, 0])
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("masses", [(1.0,), (0.7, 0.3), (0.5, 0.3, 0.2)])
def test_number_and_masses_agree_with_sklearn(masses: tuple[float, ...], seed: int) -> None:
    x = _planted(seed, masses, 8.0)
    found = _found(x)
    got = found.masses
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    rivals = [GaussianMixture(k, n_init=3, reg_covar=1e-4, random_state=0).fit(standard) for k in range(1, 6)]
    rival = min(rivals, key=lambda mixture: mixture.bic(standard))
    expected = np.sort(np.bincount(rival.predict(standard), minlength=rival.n_components) / len(x))[::-1]
    assert len(got) == len(expected) == len(masses)
    np.testing.assert_allclose(got, expected, atol=0.05)
    assert got.sum() == pytest.approx(1)
    evidence = rivals[0].bic(standard) - rival.bic(standard)
    assert found.evidence == pytest.approx(evidence, rel=0.01, abs=1e-6)


def test_likelihood_and_bic_are_sklearns() -> None:
    x = _planted(0, (0.6, 0.4), 6.0)
    ours, rival = fit(x, 2), GaussianMixture(2, n_init=3, reg_covar=1e-4, random_state=0).fit(x)
    assert ours.bic(x) == pytest.approx(rival.bic(x), rel=1e-3)


def test_a_handful_of_odd_positions_is_a_cluster_and_one_is_not_counted() -> None:
    x = _planted(0, (1.0,), 0.0, n=2000)
    x[:40] += 12.0
    masses = _found(x).masses
    assert (masses >= SMALLEST).sum() == 2
    x = _planted(0, (1.0,), 0.0, n=2000)
    x[0] += 30.0
    masses = _found(x).masses
    assert (masses >= SMALLEST).sum() == 1


def test_nothing_to_tell_positions_apart() -> None:
    rng = np.random.default_rng(0)
    assert clusters(np.ones((50, 6)), np.ones(50)) is None
    assert clusters(rng.normal(size=(6, 6)), np.ones(6)) is None  # fewer positions than needed
    x = rng.normal(size=(300, 6))
    x[:, 2:] = 3.0  # constant features are dropped
    found = _found(x)
    assert found.masses == pytest.approx([1.0])
    assert found.evidence == 0


def test_the_order_in_which_positions_are_stored_means_nothing() -> None:
    rng = np.random.default_rng(0)
    x = _planted(0, (0.5, 0.3, 0.2), 4.0, n=3000)  # more than are fitted
    order = x.sum(axis=1)
    mixed = rng.permutation(len(x))
    first, second = clusters(x, order), clusters(x[mixed], order[mixed])
    assert first is not None
    assert second is not None
    assert second.masses == pytest.approx(first.masses)
    assert second.evidence == pytest.approx(first.evidence)


def test_repeats_itself_and_survives_equal_points() -> None:
    x = np.repeat(np.random.default_rng(0).normal(size=(20, 3)), 30, axis=0)
    first, second = _found(x), _found(x)
    np.testing.assert_array_equal(first.masses, second.masses)
    assert first.evidence == second.evidence
    assert len(best_mixture(x, fit(x, 1)).weights) <= 8
