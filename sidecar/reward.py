"""From held-out losses to rewards and advantages (SCIENCE §6)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Judgement(NamedTuple):
    """The outcome of one interval."""

    reward: float  # fall of held-out loss over the interval, nats per token
    baseline: float  # running mean of the rewards of earlier intervals
    deviation: float  # running standard deviation of reward − baseline; 0 before the second reward
    advantage: float  # (reward − baseline) / deviation


class Discounted:
    """Exponentially weighted mean and variance of a stream of values, without the bias of a start at 0."""

    def __init__(self, decay: float) -> None:
        self.decay = decay  # share of the old average that is kept
        self.mean = self.variance = 0.0
        self.weight = 0.0  # Σ decay^k over the values seen

    def add(self, value: float) -> None:
        """Include `value`, with weight 1."""
        surprise = value - self.mean if self.weight else 0.0
        if not self.weight:
            self.mean = value
        self.weight = 1 + self.decay * self.weight
        rate = 1 / self.weight
        self.mean += rate * surprise
        self.variance = (1 - rate) * (self.variance + rate * surprise**2)  # West (1979), discounted

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "variance": self.variance, "weight": self.weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.mean, self.variance, self.weight = state["mean"], state["variance"], state["weight"]


class Reward:
    """Judges each interval by the exponential average of the intervals before it.

    The first `warmup` intervals are not judged: their loss falls a hundred times as fast as later, whatever the
    proposal, and averages over them would make every later reward look like a failure. The first judged interval has no
    baseline, and the advantage 0. The deviation includes the interval being judged, which bounds the advantage without
    a clip: in the long run by 1/√(decay·(1−decay)). An interval that begins or ends at a loss that is not finite is
    neither judged nor averaged.
    """

    def __init__(self, decay: float, warmup: int = 0) -> None:
        self.start: float | None = None  # held-out loss at the start of the interval; None: unknown
        self.average = Discounted(decay)
        self.unjudged = warmup  # intervals still to be skipped

    def begin(self, loss: float) -> None:
        """Start an interval at this held-out loss."""
        self.start = loss if math.isfinite(loss) else None

    def observe(self, loss: float) -> Judgement | None:
        """End an interval at this held-out loss and start the next; None where it is not judged."""
        start = self.start
        self.begin(loss)
        if start is None or not math.isfinite(loss):
            return None
        if self.unjudged:
            self.unjudged -= 1
            return None
        reward = start - loss
        baseline = self.average.mean if self.average.weight else reward
        self.average.add(reward)
        deviation = math.sqrt(self.average.variance)
        advantage = (reward - baseline) / deviation if deviation > 0 else 0.0
        return Judgement(reward, baseline, deviation, advantage)

    def state_dict(self) -> dict[str, Any]:
        """The averages and the loss that the interval began at, JSON-able."""
        return {"start": self.start, "unjudged": self.unjudged, **self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.start, self.unjudged = state["start"], state["unjudged"]
        self.average.load_state_dict(state)
