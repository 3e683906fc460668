"""A small policy beside the optimizer, which learns multipliers of weight decay and more (SCIENCE §6)."""

from sidecar.evaluation import Heldout
from sidecar.forks import Rollout
from sidecar.sidecar import Sidecar

__all__ = ["Heldout", "Rollout", "Sidecar"]
