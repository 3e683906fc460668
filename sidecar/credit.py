"""Credit assignment: from one reward to a step for every unit. One class and one line in `CREDITS` each (SCIENCE §6).

The policy draws `x = μ + σ·z`. A step estimates `σ·∂E[reward]/∂μ_i`, divided by a running scale, and likewise
`∂E[reward]/∂ln σ`, as the mean over units.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sidecar.reward import Discounted, Judgement


class Step(NamedTuple):
    mean: Tensor  # [units]: direction for the means
    spread: float  # direction for ln σ


class Credit(ABC):
    """Turns a judgement into a step of the policy. `decay` is that of the running scale."""

    needs_gradient: bool  # True: `slopes` come from a held-out backward pass

    def __init__(self, decay: float, unexplained: float) -> None:
        self.unexplained = unexplained
        self.square = Discounted(decay)  # mean over units of the squared step, before scaling

    @abstractmethod
    def step(self, judgement: Judgement, noise: Tensor, sigma: float, slopes: Tensor) -> Step:
        """The step for `noise` z and `slopes` ∂reward/∂x_i of the held-out gradient (zeros without one), [units]."""

    def state_dict(self) -> dict[str, Any]:
        """The state from which a restart continues, JSON-able."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class Joint(Credit):
    """One scalar for all units: plain REINFORCE, `advantage · z_i` (Williams 1992)."""

    needs_gradient = False

    def step(self, judgement: Judgement, noise: Tensor, sigma: float, slopes: Tensor) -> Step:
        return Step(judgement.advantage * noise, judgement.advantage * (noise.square() - 1).mean().item())


class Factored(Credit):
    """Each unit's own slope, plus `unexplained` times REINFORCE on the reward that the slopes do not explain.

    With slopes c, a mean moves by `σ·c_i + unexplained · (reward − baseline − Σ_j c_j·σ·z_j) · z_i`. With
    `unexplained=1` the slopes are a control variate whose expectation is added back: where they do not depend on z, the
    expectation is that of REINFORCE (Gu et al. 2016, MuProp). With 0 the reward does not count. ln σ moves by the sum
    of two estimates, `(1 − unexplained)·c_i·σ·z_i` and `unexplained·(reward − baseline)·(z_i² − 1)`.
    """

    needs_gradient = True

    def estimate(self, judgement: Judgement, noise: Tensor, sigma: float, slopes: Tensor) -> Step:
        """The step before scaling, nats per token."""
        surprise = judgement.reward - judgement.baseline
        # without a baseline the reward says nothing
        left = self.unexplained * (surprise - sigma * (slopes @ noise).item()) if judgement.deviation else 0.0
        pathwise, scored = sigma * slopes * noise, surprise * (noise.square() - 1)
        spread = (1 - self.unexplained) * pathwise + self.unexplained * scored
        return Step(sigma * slopes + left * noise, spread.mean().item())

    def step(self, judgement: Judgement, noise: Tensor, sigma: float, slopes: Tensor) -> Step:
        mean, spread = self.estimate(judgement, noise, sigma, slopes)
        self.square.add(mean.square().mean().item())
        scale = math.sqrt(self.square.mean)
        return Step(mean / scale, spread / scale) if scale > 0 else Step(torch.zeros_like(mean), 0.0)

    def state_dict(self) -> dict[str, Any]:
        return self.square.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.square.load_state_dict(state)


CREDITS: dict[str, type[Credit]] = {"joint": Joint, "factored": Factored}
