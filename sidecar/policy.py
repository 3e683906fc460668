"""A Gaussian policy over log-multipliers, learned by REINFORCE (Williams 1992; SCIENCE §6)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sidecar.channels import Unit

SIGMA_RANGE = (1e-3, 10.0)  # below it a proposal tries nothing new, above it every proposal is at its bound


def unit_features(units: Sequence[Unit]) -> Tensor:
    """[units, 2 + kinds], float64: a bias, the depth fraction, and which kind of tensor the unit is."""
    kinds = sorted({unit.kind for unit in units})
    rows = [[1.0, unit.depth, *(float(unit.kind == kind) for kind in kinds)] for unit in units]
    return torch.tensor(rows, dtype=torch.float64)


class GaussianPolicy:
    """`x_i ~ N(φ_i·θ, σ²)` for every unit i of one channel; θ starts at 0: multipliers start around 1.

    A draw is a pure function of (seed, channel, number of the draw): resuming needs no generator state.
    """

    def __init__(self, features: Tensor, sigma: float, seed: int, channel: str) -> None:
        self.features = features  # [units, features]
        self.gram_inverse = torch.linalg.pinv(features.T @ features, hermitian=True)  # one-hots sum to the bias
        self.theta = torch.zeros(features.shape[1], dtype=torch.float64)
        self.log_sigma = math.log(sigma)
        self.seed, self.channel = seed, channel
        self.draws = 0

    @property
    def sigma(self) -> float:
        """Standard deviation of every unit's log-multiplier."""
        return math.exp(self.log_sigma)

    def sample(self) -> Tensor:
        """The next proposal of log-multipliers, [units]; unbounded (see `bounded`)."""
        digest = hashlib.sha256(f"{self.seed}/sidecar/{self.channel}/{self.draws}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        self.draws += 1
        noise = torch.randn(len(self.features), dtype=torch.float64, generator=generator)
        return self.features @ self.theta + self.sigma * noise

    def gradient(self, sample: Tensor) -> tuple[Tensor, float]:
        """Gradient of `log π(sample)`, summed over units, with respect to θ, [features], and to ln σ."""
        error = (sample - self.features @ self.theta) / self.sigma  # [units]
        by_theta = self.features.T @ error / self.sigma
        by_log_sigma = (error.square() - 1).sum().item()
        return by_theta, by_log_sigma

    def update(self, sample: Tensor, advantage: float, lr: float, entropy: float) -> None:
        """One natural-gradient step of `lr` up `advantage · log π(sample) + entropy · H(π)`.

        The Fisher information, `ΦᵀΦ/σ²` for θ and `2·units` for ln σ, takes the scale out: the mean moves by
        `lr · advantage` of what the features explain of the sample's deviation, whatever the number of units
        and σ (Kakade 2001). The score is taken at the raw sample: clamping and mean matching belong to the
        world that the policy acts on.
        """
        by_theta, by_log_sigma = self.gradient(sample)
        units = len(sample)  # H = units · ln σ + constant
        self.theta += lr * advantage * self.sigma**2 * (self.gram_inverse @ by_theta)
        log_sigma = self.log_sigma + lr * (advantage * by_log_sigma + entropy * units) / (2 * units)
        self.log_sigma = min(max(log_sigma, math.log(SIGMA_RANGE[0])), math.log(SIGMA_RANGE[1]))

    def state_dict(self) -> dict[str, Any]:
        """What was learned and how many draws were made, JSON-able."""
        return {"theta": self.theta.tolist(), "log_sigma": self.log_sigma, "draws": self.draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned. Raises `ValueError` where the features differ in number."""
        if len(state["theta"]) != len(self.theta):
            raise ValueError(
                f"the saved policy of sidecar channel '{self.channel}' has {len(state['theta'])} features "
                f"and this model's has {len(self.theta)}: resume with the model it was saved with."
            )
        self.theta = torch.tensor(state["theta"], dtype=torch.float64)
        self.log_sigma, self.draws = state["log_sigma"], state["draws"]


def bounded(log_values: Tensor, log_bound: float) -> Tensor:
    """Multipliers `exp(x)`, [units], with x clamped to ±log_bound."""
    return log_values.clamp(-log_bound, log_bound).exp()


def mean_matched(log_values: Tensor, sizes: Tensor, log_bound: float) -> Tensor:
    """Multipliers `exp(clamp(x + c))`, [units], with the c that makes their size-weighted mean 1.

    Both the bound and the mean hold: the mean rises with c from at most 1 (c = −log_bound: no exponent is
    above 0) to at least 1 (c = log_bound), and 64 halvings of that range exhaust a double.
    """
    log_values = log_values.clamp(-log_bound, log_bound)
    shares = sizes / sizes.sum()
    low, high = -log_bound, log_bound
    for _ in range(64):
        middle = (low + high) / 2
        if shares @ bounded(log_values + middle, log_bound) < 1:
            low = middle
        else:
            high = middle
    return bounded(log_values + high, log_bound)
