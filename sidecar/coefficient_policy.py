"""A Gaussian policy over the coefficients of a formula, improved by antithetic pairs of episodes (SCIENCE §6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sidecar.policy import generator_of


class CoefficientPolicy:
    """`c ~ N(μ, σ²)`, one σ for all coefficients. Episodes come in pairs, `μ + σz` and `μ − σz`.

    Each episode of a pair is the other's baseline, so that whatever both have in common, such as the seed, cancels. A
    draw is a function of (seed, number of the pair): a restart needs no generator's state.
    """

    def __init__(self, mean: Sequence[float], sigma: float, rate: float, seed: int) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.sigma, self.rate, self.seed = sigma, rate, seed
        self.pairs = 0  # that it has learned from
        self.square = 0.0  # sum over them of ((R⁺ − R⁻)/2)²

    def noise(self, number: int) -> Tensor:
        """The standard normal z of one pair, [coefficients]."""
        generator = generator_of(self.seed, "sidecar", "coefficients", number)
        return torch.randn(len(self.mean), dtype=torch.float64, generator=generator)

    def pair(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients of both episodes, [coefficients] each."""
        return self.mean + self.sigma * noise, self.mean - self.sigma * noise

    def learn(self, noises: Sequence[Tensor], rewards: Sequence[tuple[float, float]]) -> None:
        """One natural-gradient step on a batch of pairs; `rewards`: of `μ + σz` and of `μ − σz`.

        A pair with a reward that is not finite does not count.
        """
        halves = [(z, (plus - minus) / 2) for z, (plus, minus) in zip(noises, rewards, strict=True)]
        halves = [(z, half) for z, half in halves if math.isfinite(half)]
        self.pairs += len(halves)
        self.square += sum(half**2 for _, half in halves)
        if self.square > 0 and halves:
            gradient = torch.stack([half * self.sigma * z for z, half in halves]).mean(0)
            self.mean = self.mean + self.rate * gradient / math.sqrt(self.square / self.pairs)

    def state_dict(self) -> dict[str, Any]:
        """The mean and what scales its steps, JSON-able."""
        return {"mean": self.mean.tolist(), "pairs": self.pairs, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.mean = torch.tensor(state["mean"], dtype=torch.float64)
        self.pairs, self.square = state["pairs"], state["square"]
