"""Clusters of FFN positions: a Gaussian mixture chosen by BIC (SCIENCE §1).

Mixtures grow: the next one splits a component of the last, so that nothing is drawn at random. Expectation
maximisation in numpy: importing scikit-learn alone takes half the memory of a whole reading. The tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LARGEST = 8  # components tried
PATIENCE = 2  # larger mixtures in a row that are not better end the search
FITTED = 2048  # positions that mixtures are fitted to, evenly spread; masses are over all of them
SMALLEST = 0.005  # share of the positions that makes a cluster one
RIDGE = 1e-4  # added to every variance: no component collapses onto a point
STEPS = 100  # of expectation maximisation
TRIAL = 3  # steps after which splits are compared
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
        """Σ of weights [..., m], weighted mean and covariance of the points: [...], [..., n], [..., n, n]."""
        n = self.dimensions
        sums = weights @ self.powers.T
        total = sums[..., 0] + 1e-10
        sums /= total[..., None]
        means = sums[..., 1 : n + 1]
        covariances = np.empty((*total.shape, n, n))
        covariances[..., self.first, self.second] = covariances[..., self.second, self.first] = (
            sums[..., n + 1 :] - means[..., self.first] * means[..., self.second]
        )
        return total, means, covariances


class Mixture:
    """A mixture of k Gaussians with full covariances in n dimensions; or, with further axes before, several."""

    def __init__(self, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> None:
        """weights [k], means [k, n], covariances [k, n, n]."""
        self.weights, self.means = weights, means
        self.whiten = np.linalg.inv(np.linalg.cholesky(covariances))  # [k, n, n], inverse Cholesky factors
        volume = np.log(np.diagonal(self.whiten, axis1=-2, axis2=-1)).sum(axis=-1)  # ln of 1/√det
        self.heights = np.log(weights) + volume - means.shape[-1] / 2 * math.log(2 * math.pi)  # ln density at the mean

    def log_densities(self, points: Points) -> np.ndarray:
        """ln of each component's weight and density at the points: [k, m]."""
        precisions = self.whiten.swapaxes(-1, -2) @ self.whiten
        linear = (precisions @ self.means[..., None])[..., 0]
        constant = self.heights - (linear * self.means).sum(axis=-1) / 2
        products = -precisions[..., points.first, points.second]
        products[..., points.first == points.second] /= 2
        return np.asarray(np.concatenate([constant[..., None], linear, products], axis=-1) @ points.powers)


@dataclass(frozen=True)
class Fit:
    """A mixture fitted to points."""

    mixture: Mixture
    densities: np.ndarray  # ln of each component's weight and density at the points: [k, m]
    shares: np.ndarray  # each component's share of each point: [k, m]
    likelihood: float  # ln, of all points

    @property
    def bic(self) -> float:
        """Bayesian information criterion: lower is better."""
        k, n = self.mixture.means.shape
        free = k - 1 + k * n + k * n * (n + 1) / 2
        return free * math.log(self.densities.shape[1]) - 2 * self.likelihood


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
    one, best = best_fit(sample)
    counts = np.bincount(best.mixture.log_densities(every).argmax(axis=0), minlength=len(best.mixture.weights))
    return Clusters(np.sort(counts / len(x))[::-1], one.bic - best.bic)


def best_fit(points: Points) -> tuple[Fit, Fit]:
    """One Gaussian, and the mixture of 1…8 with the lowest BIC."""
    fits = mixtures(points)
    one = best = next(fits)
    worse = 0
    for fit in fits:
        if fit.bic < best.bic:
            best, worse = fit, 0
        elif (worse := worse + 1) == PATIENCE:
            break
    return one, best


def mixtures(points: Points) -> Iterator[Fit]:
    """Mixtures of 1, 2, … `LARGEST` components, as far as there are points and a component can be split.

    Each is the last one with one component split in two, fitted again. Of several splits, that is taken whose two
    halves, fitted to the component's points for a few steps, explain these best.
    """
    fit = _climbed(points, np.ones((1, points.count)))
    yield fit
    for _ in range(2, min(LARGEST, points.count // (points.dimensions + 1)) + 1):
        split, halves = _splits(points, fit)
        if not len(split):
            return
        whole = fit.shares[split]
        for _ in range(TRIAL):
            portions, total = _shares(_maximised(points, halves).log_densities(points))
            halves = portions * whole[:, None]
        best = int((whole * (total - fit.densities[split])).sum(axis=1).argmax())
        fit = _climbed(points, np.concatenate([np.delete(fit.shares, split[best], axis=0), halves[best]]))
        yield fit


def _climbed(points: Points, shares: np.ndarray) -> Fit:
    """Expectation maximisation from the components' shares of each point [k, m]."""
    before = -math.inf
    for _ in range(STEPS):
        mixture = _maximised(points, shares)
        densities = mixture.log_densities(points)
        shares, total = _shares(densities)
        likelihood = float(total.sum())
        if likelihood - before < GAIN * points.count:
            break
        before = likelihood
    return Fit(mixture, densities, shares, likelihood)


def _maximised(points: Points, shares: np.ndarray) -> Mixture:
    """The mixture whose components have the moments of their shares of each point [..., k, m]."""
    counts, means, covariances = points.moments(shares)
    diagonal = np.arange(points.dimensions)
    covariances[..., diagonal, diagonal] += RIDGE
    return Mixture(counts / points.count, means, covariances)


def _shares(densities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each component's share of each point [..., k, m], and ln of their sum [..., m], from ln densities [..., k, m]."""
    largest = densities.max(axis=-2)
    shares = np.exp(densities - largest[..., None, :])
    total = shares.sum(axis=-2)
    shares /= total[..., None, :]
    return shares, largest + np.log(total)


def _splits(points: Points, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Components that could be split [s], and the two halves' shares of each point [s, 2, m].

    In a component's own metric E[|y|²·yyᵀ] is (n + 2)·1 for a Gaussian. The axis where it is smallest is the likeliest
    to have two lumps, and is cut through the mean; the one where it is largest, to have tails, and is cut into inside
    and outside of the standard deviation; so is the distance from the mean, for components that differ in size.
    """
    n, mixture = points.dimensions, fit.mixture
    distance = 2 * (mixture.heights[:, None] - fit.densities)  # squared, in the component's metric: [k, m]
    weights, means, around = points.moments(fit.shares * distance)
    offset = means - mixture.means
    fourth = (weights / (mixture.weights * points.count))[:, None, None] * (
        around + offset[:, :, None] * offset[:, None, :]
    )
    turned = mixture.whiten.transpose(0, 2, 1)
    # As if the ridge were noise of the points: an axis with no other variance is Gaussian, not two lumps of rounding.
    ridge = RIDGE * mixture.whiten @ turned
    share = np.trace(ridge, axis1=1, axis2=2)[:, None, None]
    smeared = (n - share + 4) * ridge + share * np.eye(n) - 2 * ridge @ ridge
    _, axes = np.linalg.eigh(mixture.whiten @ fourth @ turned + smeared)
    along = axes[:, :, [0, -1]].transpose(0, 2, 1) @ mixture.whiten  # [k, 2, n]
    y = along @ points.powers[1 : n + 1] - along @ mixture.means[:, :, None]  # [k, 2, m]
    outside = np.stack([y[:, 0] > 0, np.abs(y[:, 1]) > 1, distance > n], axis=1)  # [k, 3, m]
    halves = fit.shares[:, None, None] * np.stack([outside, ~outside], axis=2)  # [k, 3, 2, m]
    possible = halves.sum(axis=3).min(axis=2) > n + 1
    return possible.nonzero()[0], halves[possible]
