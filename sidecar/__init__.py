"""A small policy beside the optimizer: it proposes, holds and learns per-unit multipliers (SCIENCE §6)."""

from sidecar.sidecar import Heldout, Sidecar

__all__ = ["Heldout", "Sidecar"]
