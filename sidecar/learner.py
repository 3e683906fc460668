"""The learner of one channel: proposes a multiplier for each group of units, and learns from the reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sidecar.channels import Channel
from sidecar.credit import CREDITS
from sidecar.features import Observation, features_of
from sidecar.governed import Governed
from sidecar.policy import GaussianPolicy, mean_matched_slopes
from sidecar.reward import Judgement
from sidecar.settings import Settings


class Learner(Governed):
    """Draws the channel's log-multipliers, one per group of units, and improves the policy that it draws from.

    Raises `ValueError` for bounds that cannot work.
    """

    def __init__(
        self,
        channel: Channel,
        parameters: Mapping[str, Tensor],
        settings: Settings,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        super().__init__(channel, parameters, settings)
        self.optimizer = optimizer
        width = self._features(0).shape[1]
        self.policy = GaussianPolicy(settings.policy, width, settings.sigma, settings.seed, channel.name)
        credit = settings.credit if settings.mode == "learn" else "joint"  # the other modes never learn
        self.credit = CREDITS[credit](settings.baseline_decay, settings.unexplained)
        self.drawn: dict[str, Tensor] = {}  # features, noise and sample of the proposal in force

    def draw(self, step: int) -> None:
        """Draw the proposal that replaces the one in force."""
        features = self._features(step)
        sample, noise = self.policy.sample(features)
        self.drawn = {"features": features, "sample": sample, "noise": noise}

    def multipliers(self) -> Tensor:
        """The multipliers of the proposal in force, [units]."""
        return self.within(self.drawn["sample"][self.groups])

    def learn(self, judgement: Judgement, slopes: Tensor) -> None:
        """Take one step of the policy; `slopes` [units] are summed within each group."""
        if self.settings.mean_matched:
            slopes = mean_matched_slopes(slopes, self.drawn["sample"][self.groups], self.sizes, self.limits)
        noise = self.drawn["noise"]
        pooled = torch.zeros(len(noise), dtype=torch.float64).index_add(0, self.groups, slopes)
        step = self.credit.step(judgement, noise, self.policy.sigma, pooled)
        self.policy.update(self.drawn["features"], step, self.settings.policy_lr, self.settings.entropy, self.limits)

    def state_dict(self) -> dict[str, Any]:
        """The policy, its credit and the last draw, JSON-able."""
        return {
            "policy": self.policy.state_dict(),
            "credit": self.credit.state_dict(),
            "drawn": {name: tensor.tolist() for name, tensor in self.drawn.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises `ValueError` where the features differ in number."""
        self.policy.load_state_dict(state["policy"])
        self.credit.load_state_dict(state["credit"])
        self.drawn = {name: torch.tensor(values, dtype=torch.float64) for name, values in state["drawn"].items()}

    def _features(self, step: int) -> Tensor:
        """[groups, features]: means over the units of each group."""
        momenta = {}
        if self.optimizer is not None and "momentum_alignment" in self.settings.features:
            momenta = {p: s["exp_avg"] for p, s in self.optimizer.state.items() if "exp_avg" in s}
        progress = step / self.settings.steps if self.settings.steps else 0.0
        by_unit = features_of(self.settings.features, Observation(self.channel.units, self.weights, momenta, progress))
        total = torch.zeros(int(self.groups.max()) + 1, by_unit.shape[1], dtype=torch.float64)
        return total.index_add(0, self.groups, by_unit) / torch.bincount(self.groups)[:, None]
