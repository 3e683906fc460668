"""Clusters of FFN positions: a Gaussian mixture chosen by BIC (SCIENCE §1).

Mixtures grow: the next one splits a component of the last, so that nothing is drawn at random. Expectation
maximisation in numpy: importing scikit-learn alone takes half the memory of a whole reading. The tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

LARGEST = 8  # components tried
PATIENCE = 2  # larger mixtures in a row that are not better end the search
FITTED = 2048  # positions that mixtures are fitted to, evenly spread; masses are over all of them
SMALLEST = 0.005  # share of the positions that makes a cluster one
RIDGE = 1e-4  # added to every variance: no component collapses onto a point
STEPS = 100  # of expectation maximisation
TRIAL = 2  # steps after which the splits are compared
TRIED = 3  # components that are split, those least like a Gaussian first
GAIN = 1e-3  # of the mean log-likelihood; a step that gains less is the last


class Points:
    """Points in n dimensions, with their products: a Gaussian's log-density is linear in these, and so are moments."""

    def __init__(self, x: np.ndarray) -> None:
        """`x` [m, n]."""
        self.count, self.dimensions = x.shape
        self.first, self.second = np.triu_indices(self.dimensions)
        products = x[:, self.first] * x[:, self.second]
        # Rows are 1, each coordinate and each product: [1 + n + n(n+1)/2, m].
        self.powers = np.ascontiguousarray(np.concatenate([np.ones((len(x), 1)), x, products], axis=1).T)

    def moments(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Σ of the weights [k, m], and the weighted mean and covariance of the points: [k], [k, n], [k, n, n]."""
        sums = weights @ self.powers.T
        total = sums[:, 0] + 1e-10
        means, products = np.split(sums[:, 1:] / total[:, None], [self.dimensions], axis=1)
        covariances = np.empty((len(total), self.dimensions, self.dimensions))
        spread = products - means[:, self.first] * means[:, self.second]
        covariances[:, self.first, self.second] = covariances[:, self.second, self.first] = spread
        return total, means, covariances


@dataclass(frozen=True)
class Mixture:
    """A mixture of k Gaussians with full covariances in n dimensions."""

    weights: np.ndarray  # [k], summing to 1
    means: np.ndarray  # [k, n]
    covariances: np.ndarray  # [k, n, n]

    @cached_property
    def precisions(self) -> np.ndarray:
        """Inverse covariances [k, n, n]."""
        return np.linalg.inv(self.covariances)

    @cached_property
    def heights(self) -> np.ndarray:
        """ln of each component's weight and density at its mean: [k]."""
        volume = np.linalg.slogdet(self.covariances)[1] / 2 + self.means.shape[1] / 2 * math.log(2 * math.pi)
        return np.asarray(np.log(self.weights) - volume)

    def log_densities(self, points: Points) -> np.ndarray:
        """ln of each component's weight and density at the points: [k, m]."""
        linear = (self.precisions @ self.means[:, :, None])[:, :, 0]
        constant = self.heights - (linear * self.means).sum(axis=1) / 2
        products = -self.precisions[:, points.first, points.second]
        products[:, points.first == points.second] /= 2
        return np.asarray(np.concatenate([constant[:, None], linear, products], axis=1) @ points.powers)

    def bic(self, points: Points) -> float:
        """Bayesian information criterion: lower is better."""
        k, n = self.means.shape
        free = k - 1 + k * n + k * n * (n + 1) / 2
        return free * math.log(points.count) - 2 * points.count * _shares(self.log_densities(points))[1]


@dataclass(frozen=True)
class Clusters:
    """The clusters of a layer's FFN positions."""

    masses: np.ndarray  # shares of the positions, largest first; they sum to 1
    evidence: float  # fall of BIC on the fitted positions from one Gaussian to the mixture; 0 where one is best


def clusters(features: np.ndarray, order: np.ndarray) -> Clusters | None:
    """The clusters of the positions by `features` [f, n], which are standardised here and constant ones dropped.

    `order` [f]: positions are taken in the order of this quantity, not in the one they are stored in, which means
    nothing. None where no feature is left.
    """
    features = features[np.argsort(order, kind="stable")].astype(np.float64)
    std = features.std(axis=0)
    varies = std > 1e-9 * (np.abs(features).max(axis=0) + 1e-30)
    if not varies.any() or len(features) <= features.shape[1]:
        return None
    x = (features[:, varies] - features[:, varies].mean(axis=0)) / std[varies]
    every = Points(x)
    sample = every if len(x) <= FITTED else Points(x[np.linspace(0, len(x) - 1, FITTED).astype(int)])
    one = next(mixtures(sample))
    best = best_mixture(sample)
    counts = np.bincount(best.log_densities(every).argmax(axis=0), minlength=len(best.weights))
    return Clusters(np.sort(counts / len(x))[::-1], max(one.bic(sample) - best.bic(sample), 0.0))


def best_mixture(points: Points) -> Mixture:
    """The mixture of 1…8 components with the lowest BIC."""
    lowest, worse = math.inf, 0
    for mixture in mixtures(points):
        bic = mixture.bic(points)
        if bic < lowest:
            best, lowest, worse = mixture, bic, 0
        elif (worse := worse + 1) == PATIENCE:
            break
    return best


def mixtures(points: Points) -> Iterator[Mixture]:
    """Fitted mixtures of 1, 2, … `LARGEST` components, as far as there are points and a component can be split.

    Each is the last one with one component split in two, fitted again. Of several splits, those are compared by their
    likelihood after a few steps of expectation maximisation.
    """
    _, shares, mixture = _climbed(points, np.ones((1, points.count)))
    yield mixture
    for _ in range(2, min(LARGEST, points.count // (points.dimensions + 1)) + 1):
        trials = [_climbed(points, start, TRIAL) for start in _splits(points, mixture, shares)]
        if not trials:
            return
        _, shares, mixture = _climbed(points, max(trials, key=lambda trial: trial[0])[1])
        yield mixture


def _climbed(points: Points, shares: np.ndarray, steps: int = STEPS) -> tuple[float, np.ndarray, Mixture]:
    """Expectation maximisation from the components' shares of each point [k, m]: (log-likelihood, shares, mixture)."""
    before = -math.inf
    for _ in range(steps):
        counts, means, covariances = points.moments(shares)
        mixture = Mixture(counts / counts.sum(), means, covariances + RIDGE * np.eye(points.dimensions))
        shares, likelihood = _shares(mixture.log_densities(points))
        if likelihood - before < GAIN:
            break
        before = likelihood
    return likelihood, shares, mixture


def _shares(densities: np.ndarray) -> tuple[np.ndarray, float]:
    """Each component's share of each point [k, m], from ln densities, which it overwrites; and the mean ln density."""
    largest = densities.max(axis=0)
    densities -= largest
    np.exp(densities, out=densities)
    total = densities.sum(axis=0)
    densities /= total
    return densities, float((largest + np.log(total)).mean())


def _splits(points: Points, mixture: Mixture, shares: np.ndarray) -> Iterator[np.ndarray]:
    """Shares [k + 1, m] with one component split in two.

    In the component's own metric E[|y|²·yyᵀ] is (n + 2)·1 for a Gaussian. An axis where it is smaller has two lumps,
    and is cut through the mean; one where it is larger has tails, and is cut into inside and outside of the standard
    deviation; so is the distance from the mean, for components that differ in size.
    """
    n = points.dimensions
    distance = 2 * (mixture.heights[:, None] - mixture.log_densities(points))  # squared, in the component's metric
    counts = shares.sum(axis=1)
    weights, means, around = points.moments(shares * distance)
    offset = means - mixture.means
    fourth = (weights / (counts + 1e-10))[:, None, None] * (around + offset[:, :, None] * offset[:, None, :])
    whiten = np.linalg.inv(np.linalg.cholesky(mixture.covariances))
    values, axes = np.linalg.eigh(whiten @ fourth @ whiten.transpose(0, 2, 1))
    strangest = np.argsort(-counts * np.abs(values - (n + 2)).max(axis=1), kind="stable")[:TRIED]
    coordinates = points.powers[1 : n + 1]
    for component in strangest:
        along = axes[component].T[[0, -1]] @ whiten[component]
        lumps, tails = along @ coordinates - (along @ mixture.means[component])[:, None]
        for outside in (lumps > 0, np.abs(tails) > 1, distance[component] > n):
            both = np.concatenate([shares, (shares[component] * outside)[None]])
            both[component] -= both[-1]
            if min(both[component].sum(), both[-1].sum()) > n + 1:
                yield both
