"""A Gaussian policy over log-multipliers (Williams 1992; SCIENCE §6)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sidecar.credit import Step

SIGMA_RANGE = (1e-3, 10.0)  # below it all proposals are alike, above it all are at a bound
HIDDEN = 16  # units of the MLP's one hidden layer


def generator_of(*names: object) -> torch.Generator:
    """A generator seeded by `names`, such as the run's seed and the purpose of the draw."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def linear(theta: Tensor, features: Tensor) -> Tensor:
    """The linear mean Φθ of every unit, [units]."""
    return features @ theta


def mlp(theta: Tensor, features: Tensor) -> Tensor:
    """The mean of every unit, [units], from one hidden layer of tanh; `theta` holds the weights as one flat vector."""
    width = features.shape[1]
    first, last = theta[: width * HIDDEN].view(width, HIDDEN), theta[width * HIDDEN :]
    return (features @ first).tanh() @ last


def _mlp_start(width: int, generator: torch.Generator) -> Tensor:
    first = torch.randn(width * HIDDEN, dtype=torch.float64, generator=generator) / width**0.5
    return torch.cat([first, torch.zeros(HIDDEN, dtype=torch.float64)])  # every mean starts at 0


# kind → mean, start, and cutoff: the smallest singular value of the Jacobian that is inverted, relative to the largest.
# In a curved map, a step in directions that hardly move the means would leave the range where the Jacobian is valid.
MEANS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[int, torch.Generator], Tensor], float]] = {
    "linear": (linear, lambda width, generator: torch.zeros(width, dtype=torch.float64), 1e-9),
    "mlp": (mlp, _mlp_start, 0.03),
}


class GaussianPolicy:
    """`x_i ~ N(μ_θ(φ_i), σ²)` for every unit i of one channel. μ starts at 0, so that multipliers start around 1.

    A draw is a function of (seed, channel, number of the draw): a restart needs no generator's state.
    """

    def __init__(self, kind: str, width: int, sigma: float, seed: int, channel: str) -> None:
        self.mean, start, self.cutoff = MEANS[kind]
        self.theta = start(width, generator_of(seed, "sidecar", channel, "start"))
        self.log_sigma = math.log(sigma)
        self.seed, self.channel = seed, channel
        self.draws = 0

    @property
    def sigma(self) -> float:
        """Standard deviation of every unit's log-multiplier."""
        return math.exp(self.log_sigma)

    @property
    def entropy(self) -> float:
        """Entropy of one unit's log-multiplier, nats."""
        return self.log_sigma + 0.5 * math.log(2 * math.pi * math.e)

    def sample(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The next log-multipliers, before bounds, and the standard normal noise in them; both [units]."""
        generator = generator_of(self.seed, "sidecar", self.channel, self.draws)
        self.draws += 1
        noise = torch.randn(len(features), dtype=torch.float64, generator=generator)
        return self.mean(self.theta, features) + self.sigma * noise, noise

    def update(self, features: Tensor, step: Step, lr: float, entropy: float, limits: tuple[float, float]) -> None:
        """One natural-gradient step of `lr` up the reward that `step` estimates.

        The Fisher information is JᵀJ/σ² for θ (J = ∂μ/∂θ) and 2·units for ln σ (Kakade 2001). So the means move by
        `lr·σ·step.mean`, as far as the features can express that, and ln σ by `lr·(step.spread + entropy)/2`. No step
        asks for a mean beyond `limits`, from where it would take long to return; units that share parameters with it
        may still move it there.
        """
        mean = self.mean(self.theta, features)
        move = lr * self.sigma * step.mean
        outward = ((mean <= limits[0]) & (move < 0)) | ((mean >= limits[1]) & (move > 0))
        self.theta = self.theta + self._step(features, mean, move.masked_fill(outward, 0.0))
        log_sigma = self.log_sigma + lr * (step.spread + entropy) / 2
        self.log_sigma = min(max(log_sigma, math.log(SIGMA_RANGE[0])), math.log(SIGMA_RANGE[1]))

    def _step(self, features: Tensor, mean: Tensor, move: Tensor) -> Tensor:
        """The change of θ that moves the means by `move`, as far as the features can express it.

        It leaves out directions that hardly move the means. Because a curved map's Jacobian is valid only nearby, the
        step is halved while it moves the means much further than `move`.
        """
        jacobian = self._jacobian(features)
        step = torch.linalg.pinv(jacobian, rtol=self.cutoff) @ move
        while (self.mean(self.theta + step, features) - mean).norm() > 1.5 * move.norm():
            step = step / 2
        return step

    def _jacobian(self, features: Tensor) -> Tensor:
        """∂μ/∂θ, [units, θ]: the gradient of one unit's mean at a time, because it depends on no other's features."""

        def mean(theta: Tensor, one: Tensor) -> Tensor:
            return self.mean(theta, one[None])[0]

        return torch.func.vmap(torch.func.grad(mean), in_dims=(None, 0))(self.theta, features)

    def state_dict(self) -> dict[str, Any]:
        """The parameters and the number of draws, JSON-able."""
        return {"theta": self.theta.tolist(), "log_sigma": self.log_sigma, "draws": self.draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises `ValueError` where the features differ in number."""
        if len(state["theta"]) != len(self.theta):
            raise ValueError(
                f"the saved policy of sidecar channel '{self.channel}' has {len(state['theta'])} parameters "
                f"and this model's has {len(self.theta)}: resume with the model and features it was saved with."
            )
        self.theta = torch.tensor(state["theta"], dtype=torch.float64)
        self.log_sigma, self.draws = state["log_sigma"], state["draws"]


def bounded(log_values: Tensor, limits: tuple[float, float]) -> Tensor:
    """Multipliers `exp(x)`, [units], with x clamped to `limits`, which are logarithms."""
    return log_values.clamp(*limits).exp()


def mean_matched(log_values: Tensor, sizes: Tensor, limits: tuple[float, float]) -> Tensor:
    """Multipliers `exp(clamp(x + c))`, [units], with the c that makes their size-weighted mean 1.

    Such a c exists because 1 lies inside the bounds: the mean rises with c from at most 1 to at least 1. It is found by
    64 bisections, to a double's precision.
    """
    log_values = log_values.clamp(*limits)
    shares = sizes / sizes.sum()
    span = limits[1] - limits[0]
    low, high = -span, span
    for _ in range(64):
        middle = (low + high) / 2
        if shares @ bounded(log_values + middle, limits) < 1:
            low = middle
        else:
            high = middle
    return bounded(log_values + high, limits)


def mean_matched_slopes(slopes: Tensor, log_values: Tensor, sizes: Tensor, limits: tuple[float, float]) -> Tensor:
    """Slopes by `log_values`, [units]. `slopes`: those by the logarithms of `mean_matched`'s multipliers.

    A unit at a bound does not move. The others share the constant c: `∂ ln m_j/∂x_i = δ_ij − w_i`, where w_i is unit
    i's share of their parameter-weighted sum.
    """
    multipliers = mean_matched(log_values, sizes, limits)
    logs, (low, high) = multipliers.log(), limits
    free = (logs > low + 1e-9) & (logs < high - 1e-9)
    weights = torch.where(free, sizes * multipliers, 0.0)
    shared = weights / weights.sum().clamp_min(1e-300) * slopes[free].sum()
    counted = free & (log_values >= low) & (log_values <= high)  # a proposal beyond its limits has no effect
    return torch.where(counted, slopes - shared, 0.0)
