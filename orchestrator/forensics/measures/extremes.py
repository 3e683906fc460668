"""The largest absolute entry of a matrix, and the largest that chance gives (SCIENCE §1)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def largest_and_rms(w: Tensor) -> tuple[float, float]:
    """Largest absolute entry of w, and the root of its mean square; w is not copied."""
    low, high = w.aminmax()
    return max(float(high), -float(low)), float(w.norm()) / math.sqrt(w.numel())


def expected_largest(count: float) -> float:
    """Expected largest absolute value of `count` standard normal numbers.

    Their maximum tends to a Gumbel law with the location and scale below (Gumbel 1958); its mean is within 1 % from
    30 numbers on.
    """
    location = -normal_quantile(0.5 / count)
    return location + float(np.euler_gamma) * (-normal_quantile(0.5 / (count * math.e)) - location)


def normal_quantile(share: float) -> float:
    """The value below which that share of a standard normal law lies."""
    return float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64)))
