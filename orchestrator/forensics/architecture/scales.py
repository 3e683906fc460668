"""Norm scales, as they are stored."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from orchestrator.forensics.weights.tensors import Tensors

MANY = 0.25  # of the scales: so many at 0 or below it would silence a layer, unless 1 is added to them


def share_below_0(tensors: Tensors, names: Iterable[str]) -> tuple[float, float] | None:
    """Shares of the entries of these tensors that are below 0, and at 0; None where the file holds none of them."""
    scales = [tensors.read(name) for name in names if name in tensors]
    if not scales:
        return None
    entries = torch.cat(scales)
    return float((entries < 0).float().mean()), float((entries == 0).float().mean())
