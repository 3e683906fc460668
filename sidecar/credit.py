"""From one reward to a step for every unit: one class and one line in `CREDITS` each (SCIENCE §6).

The policy draws `x = μ + σ·z`. What is estimated is `σ·∂E[reward]/∂μ_i`, in units of a running scale of its
own, and the same for ln σ, as the mean over units.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sidecar.reward import Discounted, Judgement


class Step(NamedTuple):
    mean: Tensor  # [units]: where the means should go
    spread: float  # where ln σ should go


class Credit(Protocol):
    needs_gradient: bool  # of the held-out loss, by every unit

    def step(self, judgement: Judgement, noise: Tensor, sigma: float, slopes: Tensor) -> Step:
        """`noise` z and `slopes` [units]: ∂reward/∂x_i as the held-out gradient has it; zeros without one."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Joint:
    """One scalar for all units: plain REINFORCE, `advantage · z_i` (Williams 1992)."""

    needs_gradient = False

    def __init__(self, decay: float, unexplained: float) -> None:
        pass

    def step(self, judgement: Judgement, noise: Tensor, sigma: float, slopes: Tensor) -> Step:
        return Step(judgement.advantage * noise, judgement.advantage * (noise.square() - 1).mean().item())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Factored:
    """Every unit by its own slope, and REINFORCE for `unexplained` of what the slopes leave unexplained.

    `σ·c_i + unexplained · (reward − baseline − Σ_j c_j·σ·z_j) · z_i`: with `unexplained=1` the slopes are a
    control variate whose expectation is added back, which leaves REINFORCE's expectation as it is where the
    slopes do not depend on z (Gu et al. 2016, MuProp); with 0 it is the slopes alone, which no reward enters.
    ln σ, of which slopes that depend on z say the most, goes by `(1 − unexplained)·c_i·σ·z_i` and
    `unexplained·(reward − baseline)·(z_i² − 1)`: two estimates of one thing, mixed.
    """

    needs_gradient = True

    def __init__(self, decay: float, unexplained: float) -> None:
        self.unexplained = unexplained
        self.square = Discounted(decay)  # of the step before it is scaled, mean over units

    def estimate(self, judgement: Judgement, noise: Tensor, sigma: float, slopes: Tensor) -> Step:
        """The step before it is scaled, nats per token."""
        surprise = judgement.reward - judgement.baseline
        # without a baseline nothing is left over
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


CREDITS: dict[str, type[Joint] | type[Factored]] = {"joint": Joint, "factored": Factored}
