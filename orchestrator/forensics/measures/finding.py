"""A tensor that is not as it should be, as a reading holds it (SCIENCE §5)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One tensor that is not as it should be."""

    tensor: str
    ratio: float  # spectral norm over the median of the same kind in the other layers; 0 where `blemish` says more
    severity: str  # "warn" or "critical"
    blemish: str = ""  # what is wrong other than the spectral norm

    @property
    def text(self) -> str:
        """The tensor and what is wrong with it."""
        return f"{self.tensor} " + (self.blemish or f"has {self.ratio:.1f}× its peers' spectral norm")
