"""Held-out loss → reward → advantage (SCIENCE §6)."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple


class Judgement(NamedTuple):
    reward: float  # fall of held-out loss over the interval, nats per token
    baseline: float  # what the intervals before it led one to expect
    advantage: float  # (reward − baseline) / running deviation


class Reward:
    """Judges each interval against the exponential average of those before it.

    The first has nothing to be judged against: its advantage is 0. The deviation includes the interval being
    judged, which bounds the advantage, in the long run by 1/√(decay·(1−decay)), without a clip. A loss that
    is not finite spoils the intervals on both sides of it: they are not judged and leave no mark.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay  # share of the old average that is kept
        self.start: float | None = None  # held-out loss at the start of the interval; None: unknown
        self.mean = self.variance = 0.0
        self.weight = 0.0  # Σ decay^k over the intervals judged: the averages are exact from the first one on
        self._warned = False

    def observe(self, loss: float) -> Judgement | None:
        """End an interval at this held-out loss and start the next; None where it cannot be judged."""
        start, self.start = self.start, loss if math.isfinite(loss) else None
        if self.start is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"held-out loss is {loss}: the sidecar keeps its values and does not learn from it.",
                RuntimeWarning,
                stacklevel=2,
            )
        if start is None or self.start is None:
            return None
        reward = start - loss
        baseline = self.mean if self.weight else reward
        surprise = reward - baseline
        self.weight = 1 + self.decay * self.weight
        rate = 1 / self.weight
        self.mean = baseline + rate * surprise
        self.variance = (1 - rate) * (self.variance + rate * surprise**2)  # West (1979), discounted
        advantage = surprise / math.sqrt(self.variance) if self.variance > 0 else 0.0
        return Judgement(reward, baseline, advantage)

    def state_dict(self) -> dict[str, Any]:
        """The averages and the loss that the interval began at, JSON-able."""
        return {"start": self.start, "mean": self.mean, "variance": self.variance, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.start, self.weight = state["start"], state["weight"]
        self.mean, self.variance = state["mean"], state["variance"]
