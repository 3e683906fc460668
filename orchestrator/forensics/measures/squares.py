"""The law of a matrix's squared entries, small enough to keep once its weights are freed (SCIENCE §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

BLOCK = 2**16  # entries squared at once


@dataclass(frozen=True)
class Squares:
    """A law of squared entries: the largest as they are, the others by their moments."""

    largest: np.ndarray  # float32 [n], ascending
    share: float  # of all entries that are among the largest
    mean: float  # of the others
    variance: float
    third: float  # third central moment


def squares(w: Tensor, apart: int) -> Squares:
    """The law of the squared entries of a matrix, the `apart` largest of which stand by themselves.

    Of a matrix times a number it is the same law times the number's square, and no order of the entries changes it.
    """
    blocks, largest = w.split(max(1, BLOCK // w.shape[1])), np.zeros(apart, dtype=np.float32)
    for block in blocks:
        found = np.concatenate([largest, _above(block.square(), float(largest.min()))])
        largest = np.partition(found, -apart)[-apart:]
    return Squares(np.sort(largest), apart / w.numel(), *_others(blocks, float(largest.min()), apart))


def _above(values: Tensor, bound: float) -> np.ndarray:
    """The values above the bound: [n]."""
    if values.is_cuda:
        return values[values > bound].cpu().numpy()
    array = values.numpy()  # selects several times as fast as torch
    return array[array > bound]


def _others(blocks: Sequence[Tensor], bound: float, apart: int) -> tuple[float, float, float]:
    """Mean, variance, third central moment of the squares without the `apart` largest, the least of which is the bound.

    The largest enter as the bound, and are then taken off: one of them as it is could hide all others from float32.
    """
    entries = sum(block.numel() for block in blocks)
    if entries == apart or not bound:
        return 0.0, 0.0, 0.0
    parts = [(-apart, 1.0, 0.0, 0.0)]  # number, mean, Σ of the squared and of the cubed distances from it
    for block in blocks:
        x = block.mul(bound**-0.5).square_().clamp_(max=1).flatten()
        mean = float(x.mean())
        x -= mean
        parts.append((len(x), mean, float(x @ x), float(x @ x.square())))
    n, means, second, third = np.array(parts).T
    mean = float(n @ means) / (entries - apart)
    off = means - mean
    variance = float((second + n * off**2).sum()) / (entries - apart)
    skewed = float((third + 3 * off * second + n * off**3).sum()) / (entries - apart)
    return bound * max(mean, 0.0), bound**2 * max(variance, 0.0), bound**3 * skewed
