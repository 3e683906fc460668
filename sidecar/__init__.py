"""A small policy beside the optimizer: it proposes, holds and learns per-unit multipliers (SCIENCE §6)."""

from sidecar.evaluation import Heldout
from sidecar.sidecar import Sidecar

__all__ = ["Heldout", "Sidecar"]
