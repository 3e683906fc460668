"""Norm scales, as they are stored."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from orchestrator.forensics.weights.tensors import Tensors

MANY = 0.25  # of the scales: so many at 0 or below would silence a layer, unless 1 is added to them


def share_below_0(tensors: Tensors, names: Iterable[str]) -> float | None:
    """Share of the entries of these tensors that are 0 or below; None where the file holds none of them."""
    scales = [tensors.read(name) for name in names if name in tensors]
    return float((torch.cat(scales) <= 0).float().mean()) if scales else None
