"""Our mixtures against scikit-learn's, on positions of known kinds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from orchestrator.forensics.measures.clusters import SMALLEST, Clusters, Points, best_fit, clusters, mixtures


def _clusters(x: np.ndarray) -> Clusters | None:
    """The clusters of points that are taken in the order of their first feature."""
    return clusters(x, x[:, 0])


def _standard(x: np.ndarray) -> np.ndarray:
    return np.asarray((x - x.mean(axis=0)) / x.std(axis=0))


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
    got = _clusters(x)
    assert got is not None
    standard = _standard(x)
    rivals = [GaussianMixture(k, n_init=3, reg_covar=1e-4, random_state=0).fit(standard) for k in range(1, 6)]
    rival = min(rivals, key=lambda mixture: mixture.bic(standard))
    expected = np.sort(np.bincount(rival.predict(standard), minlength=rival.n_components) / len(x))[::-1]
    assert len(got.masses) == len(expected) == len(masses)
    np.testing.assert_allclose(got.masses, expected, atol=0.05)
    assert got.masses.sum() == pytest.approx(1)
    assert got.evidence == pytest.approx(rivals[0].bic(standard) - rival.bic(standard), rel=1e-2, abs=1e-6)


def test_bic_is_that_of_scipys_densities() -> None:
    x = _standard(_planted(0, (0.6, 0.4), 6.0))
    for k, fit in zip(range(1, 4), mixtures(Points(x)), strict=False):
        weights, means, whiten = fit.mixture.weights, fit.mixture.means, fit.mixture.whiten
        covariances = [np.linalg.inv(half.T @ half) for half in whiten]
        parts = zip(weights, means, covariances, strict=True)
        density = sum(w * multivariate_normal(mean, cov).pdf(x) for w, mean, cov in parts)
        free = k - 1 + 6 * k + 21 * k
        assert len(weights) == k
        assert weights.sum() == pytest.approx(1)
        assert fit.bic == pytest.approx(free * np.log(len(x)) - 2 * np.log(density).sum(), rel=1e-6)


KINDS = {  # laws of points that one Gaussian does not fit
    "two lumps along an axis of little variance": lambda rng: np.stack(
        [9 * rng.normal(size=500), rng.choice([-1, 1], 500) + 0.2 * rng.normal(size=500)], axis=1
    ),
    "one centre, three scales": lambda rng: rng.normal(size=(500, 3)) * rng.choice([0.1, 1, 6], 500)[:, None],
    "heavy tails": lambda rng: rng.standard_t(3, size=(500, 4)),
    "correlated logs": lambda rng: np.log(rng.gamma(2, size=(500, 3))) @ rng.normal(size=(3, 3)),
    "a curve": lambda rng: (
        (lambda t: np.stack([t, t**2, np.sin(3 * t)], axis=1))(rng.normal(size=500)) + 0.1 * rng.normal(size=(500, 3))
    ),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_worse_than_the_best_of_sklearns_random_starts(kind: str) -> None:
    ours = rivals = 0.0
    for seed in range(2):
        x = _standard(KINDS[kind](np.random.default_rng(seed)))
        one, best = best_fit(Points(x))
        fits = (GaussianMixture(k, n_init=2, reg_covar=1e-4, random_state=0).fit(x) for k in range(2, 9))
        ours += one.bic - best.bic
        rivals += one.bic - min(fit.bic(x) for fit in fits)
    assert ours > 0.95 * rivals


def test_a_handful_of_odd_positions_is_a_cluster_and_one_is_not_counted() -> None:
    x = _planted(0, (1.0,), 0.0, n=2000)
    x[:40] += 12.0
    got = _clusters(x)
    assert got is not None
    assert (got.masses >= SMALLEST).sum() == 2
    x = _planted(0, (1.0,), 0.0, n=2000)
    x[0] += 30.0
    got = _clusters(x)
    assert got is not None
    assert (got.masses >= SMALLEST).sum() == 1


@pytest.mark.parametrize("n", [800, 5000])  # all are fitted; some are
def test_the_order_of_the_positions_does_not_matter(n: int) -> None:
    x = _planted(1, (0.6, 0.3, 0.1), 3.0, n=n)
    first, other = _clusters(x), _clusters(x[np.random.default_rng(0).permutation(len(x))])
    assert first is not None
    assert other is not None
    assert other.evidence == pytest.approx(first.evidence, rel=1e-9)
    np.testing.assert_allclose(other.masses, first.masses)


def test_a_little_noise_moves_the_evidence_a_little() -> None:
    x = np.random.default_rng(0).standard_t(3, size=(1000, 6))  # no right number of clusters
    first, other = _clusters(x), _clusters(x + 0.005 * np.random.default_rng(1).normal(size=x.shape))
    assert first is not None
    assert other is not None
    assert other.evidence**0.5 == pytest.approx(first.evidence**0.5, abs=1.0)


def test_nothing_to_tell_positions_apart() -> None:
    assert _clusters(np.ones((50, 6))) is None
    assert _clusters(np.random.default_rng(0).normal(size=(6, 6))) is None  # fewer positions than needed
    x = np.random.default_rng(0).normal(size=(300, 6))
    x[:, 2:] = 3.0  # constant features are dropped
    got = _clusters(x)
    assert got is not None
    assert got.masses == pytest.approx([1.0])
    assert got.evidence == 0


def test_equal_points_are_survived() -> None:
    x = np.repeat(np.random.default_rng(0).normal(size=(20, 3)), 30, axis=0)
    got = _clusters(x)
    assert got is not None
    assert np.isfinite(got.evidence)
    assert len(got.masses) <= 8
