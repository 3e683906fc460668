"""A small policy beside the optimizer: it proposes, holds and learns per-unit multipliers (SCIENCE §6)."""

from sidecar.sidecar import Sidecar

__all__ = ["Sidecar"]
