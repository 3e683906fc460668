"""Clusters of FFN positions: a Gaussian mixture chosen by BIC (SCIENCE §1).

Expectation maximisation in numpy: importing scikit-learn alone takes half the memory of a whole reading. The tests
compare the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LARGEST = 8  # components tried
PATIENCE = 2  # larger mixtures in a row that are not better end the search
FITTED = 1024  # positions that mixtures are fitted to, evenly spread; masses are over all of them
SMALLEST = 0.005  # share of the positions that makes a cluster one
RIDGE = 1e-4  # added to every variance: no component collapses onto a point
STEPS = 100  # of expectation maximisation
STARTS = 3  # of each fit; the most likely is taken
GAIN = 1e-3  # of the mean log-likelihood; a step that gains less is the last


class Mixture:
    """A mixture of k Gaussians with full covariances in n dimensions."""

    def __init__(self, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> None:
        """weights [k], means [k, n], covariances [k, n, n]."""
        self.weights, self.means = weights, means
        self.whiten = np.linalg.inv(np.linalg.cholesky(covariances))  # [k, n, n], inverse Cholesky factors

    def log_densities(self, x: np.ndarray) -> np.ndarray:
        """ln of each component's weight and density at the points x [m, n]: [k, m]."""
        distance = self.whiten @ (x[None] - self.means[:, None]).transpose(0, 2, 1)  # [k, n, m]
        volume = np.log(np.diagonal(self.whiten, axis1=1, axis2=2)).sum(axis=1)  # ln of 1/√det
        constant = np.log(self.weights) + volume - x.shape[1] / 2 * math.log(2 * math.pi)
        return np.asarray(constant[:, None] - np.square(distance).sum(axis=1) / 2)

    def bic(self, x: np.ndarray) -> float:
        """Bayesian information criterion on x [m, n]: lower is better."""
        k, n = self.means.shape
        free = k - 1 + k * n + k * n * (n + 1) / 2
        return free * math.log(len(x)) - 2 * float(_log_sum(self.log_densities(x)).sum())


@dataclass(frozen=True)
class Clusters:
    """The clusters of a layer's FFN positions."""

    masses: np.ndarray  # shares of the positions, largest first; they sum to 1
    evidence: float  # fall of BIC on the fitted positions from one Gaussian to the mixture; 0 where one is best


def clusters(features: np.ndarray, order: np.ndarray) -> Clusters | None:
    """The clusters of the positions by `features` [f, n], which are standardised here and constant ones dropped.

    `order` [f]: positions are sampled and started from in the order of this quantity, not in the one they are stored
    in, which means nothing. None where no feature is left.
    """
    features = features[np.argsort(order, kind="stable")]
    std = features.std(axis=0)
    varies = std > 1e-9 * (np.abs(features).max(axis=0) + 1e-30)
    if not varies.any() or len(features) <= features.shape[1]:
        return None
    x = (features[:, varies] - features[:, varies].mean(axis=0)) / std[varies]
    sample = x[np.linspace(0, len(x) - 1, min(len(x), FITTED)).astype(int)]
    one = fit(sample, 1)
    best = best_mixture(sample, one)
    counts = np.bincount(best.log_densities(x).argmax(axis=0), minlength=len(best.weights))
    return Clusters(np.sort(counts / len(x))[::-1], max(one.bic(sample) - best.bic(sample), 0.0))


def best_mixture(x: np.ndarray, one: Mixture) -> Mixture:
    """The mixture of 1…8 components with the lowest BIC on x [m, n]; `one`: that of one component."""
    best, worse = one, 0
    lowest = best.bic(x)
    for k in range(2, min(LARGEST, len(x) // (x.shape[1] + 1)) + 1):
        mixture = fit(x, k)
        bic = mixture.bic(x)
        best, lowest, worse = (mixture, bic, 0) if bic < lowest else (best, lowest, worse + 1)
        if worse == PATIENCE:
            break
    return best


def fit(x: np.ndarray, k: int) -> Mixture:
    """A mixture of k components fitted to x [m, n]: the most likely of a few starts."""
    rng = np.random.default_rng(k)
    fits = [_climb(x, _spread(x, k, rng)) for _ in range(STARTS if k > 1 else 1)]
    return max(fits, key=lambda found: found[0])[1]


def _climb(x: np.ndarray, centres: np.ndarray) -> tuple[float, Mixture]:
    """Expectation maximisation from the points nearest to each centre: (mean log-likelihood, mixture)."""
    nearest = np.square(x[:, None] - centres[None]).sum(axis=2).argmin(axis=1)  # [m]
    shares = np.eye(len(centres))[:, nearest]  # [k, m]: how much of each point is a component's
    before = -math.inf
    for _ in range(STEPS):
        mixture = _maximised(x, shares)
        densities = mixture.log_densities(x)
        total = _log_sum(densities)
        likelihood = float(total.mean())
        if likelihood - before < GAIN:
            break
        before = likelihood
        shares = np.exp(densities - total)
    return likelihood, mixture


def _spread(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k points of x, far from each other (Arthur & Vassilvitskii 2007): [k, n]."""
    centres = [x[rng.integers(len(x))]]
    distance = np.full(len(x), np.inf)
    for _ in range(k - 1):
        distance = np.minimum(distance, np.square(x - centres[-1]).sum(axis=1))
        total = distance.sum()
        centres.append(x[rng.choice(len(x), p=distance / total if total else None)])
    return np.stack(centres)


def _maximised(x: np.ndarray, shares: np.ndarray) -> Mixture:
    counts = shares.sum(axis=1) + 1e-10
    means = shares @ x / counts[:, None]
    offsets = x[None] - means[:, None]  # [k, m, n]
    covariances = (offsets * shares[:, :, None]).transpose(0, 2, 1) @ offsets / counts[:, None, None]
    return Mixture(counts / counts.sum(), means, covariances + RIDGE * np.eye(x.shape[1]))


def _log_sum(values: np.ndarray) -> np.ndarray:
    """ln Σ exp over the first axis."""
    largest = values.max(axis=0)
    return np.asarray(largest + np.log(np.exp(values - largest).sum(axis=0)))
