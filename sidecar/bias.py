"""The short-horizon bias: how far a short look ahead prefers other multipliers than a long one (SCIENCE §6)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

SHORT = 20  # steps of the short horizon


@dataclass
class HorizonBias:
    """Running sums over pairs of forks, each judged at two horizons. x and y: reward of μ + σz less that of μ − σz."""

    pairs: int = 0
    disagreeing: int = 0  # pairs of which the short horizon prefers the one twin and the full one the other
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    def add(self, short: float | None, full: float | None) -> None:
        """Count a pair whose rewards differ by `short` and by `full`; one that lacks either does not count."""
        if short is None or full is None:
            return
        self.pairs += 1
        self.disagreeing += short * full < 0
        self.x, self.y = self.x + short, self.y + full
        self.xx, self.yy, self.xy = self.xx + short**2, self.yy + full**2, self.xy + short * full

    @property
    def share(self) -> float | None:
        """Share of the pairs whose two horizons disagree on which twin is better; None without pairs."""
        return self.disagreeing / self.pairs if self.pairs else None

    @property
    def r(self) -> float | None:
        """Pearson's correlation of the two differences; None of fewer than three pairs, or where one does not vary."""
        n = self.pairs
        varied = (n * self.xx - self.x**2) * (n * self.yy - self.y**2)
        return (n * self.xy - self.x * self.y) / math.sqrt(varied) if n > 2 and varied > 0 else None

    def summary(self) -> dict[str, Any]:
        """`pairs`, the `share` that disagrees and `r`, JSON-able."""
        return {"pairs": self.pairs, "share": self.share, "r": self.r}

    def state_dict(self) -> dict[str, Any]:
        """The sums, JSON-able."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        vars(self).update(state)
