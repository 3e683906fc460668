"""Learning within a run: every interval's proposal is judged by held-out loss, and improves the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sidecar.evaluation import Evaluation, WarnOnce
from sidecar.learner import Learner
from sidecar.reward import Judgement, Reward
from sidecar.settings import Settings
from sidecar.source import Decided, Source, without_a_tensor


class Learning(Source):
    """Proposals of policies, one for each channel, which hold for an interval; in mode `random` nothing is learned.

    Where the held-out loss fails or is not finite, nothing is learned and the multipliers in force stay; so do those
    of a channel that has lost a tensor.
    """

    def __init__(
        self,
        settings: Settings,
        learners: Mapping[str, Learner],
        evaluation: Evaluation,
        model: nn.Module,
        warn: WarnOnce,
    ) -> None:
        self.settings, self.learners, self.evaluation = settings, learners, evaluation
        self.model, self.warn = model, warn
        self.interval = settings.interval
        self.reward = Reward(settings.baseline_decay, settings.warmup)
        self.count = 0  # intervals ended
        self.begun = False
        self._lost: set[str] = set()
        self.needs_slopes = settings.mode == "learn" and any(x.credit.needs_gradient for x in learners.values())
        if self.needs_slopes:
            for learner in learners.values():
                learner.channel.follow(carried=settings.trace == "run")

    def decide(self, step: int) -> Decided:
        judgement = self._judge() if self.begun else None
        if self.settings.fresh or not self.begun:
            checked = self.needs_slopes and not self.evaluation.forwards  # a loss without a graph fails at once
            self.reward.begin(self.evaluation.measure(self.count, checked)[0])
        if judgement or not self.begun:
            for name, learner in self.learners.items():
                if name not in self._lost:
                    learner.draw(step)
        self.begun = True
        self.agree()
        policies = {name: learner.policy for name, learner in self.learners.items()}
        record = {
            **(judgement._asdict() if judgement else {}),
            "sigma": {name: policy.sigma for name, policy in policies.items()},
            "entropy": {name: policy.entropy for name, policy in policies.items()},
        }
        return Decided({name: learner.multipliers() for name, learner in self.learners.items()}, record)

    def _judge(self) -> Judgement | None:
        """End the interval and learn from it; None where it is not judged."""
        self._lost = without_a_tensor(self.model, self.learners, self.warn)
        loss, slopes = self.evaluation.measure(self.count, self.needs_slopes)
        if self.needs_slopes and math.isfinite(loss) and not self._lost and not any(map(torch.any, slopes.values())):
            self.warn(
                "slopes",
                "no multiplier of the sidecar had any effect on the held-out loss of the interval that ended",
                "enclose the optimizer's steps in sidecar.applied(lr), and let heldout_loss depend on the weights",
            )
        judgement = self.reward.observe(loss)
        self.count += 1
        if judgement and self.settings.mode == "learn":
            for name, learner in self.learners.items():
                if name not in self._lost:
                    learner.learn(judgement, slopes[name])
        return judgement

    def state_dict(self) -> dict[str, Any]:
        return {
            "learners": {name: learner.state_dict() for name, learner in self.learners.items()},
            "reward": self.reward.state_dict(),
            "count": self.count,
            "begun": self.begun,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, learner in self.learners.items():
            learner.load_state_dict(state["learners"][name])
        self.reward.load_state_dict(state["reward"])
        self.count, self.begun = state["count"], state["begun"]
