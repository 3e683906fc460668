"""The null of the activation probe: a model with its weights redrawn (SCIENCE §3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from models.transformer import seed_of

BLOCK = 2**20  # entries resampled at once


@contextmanager
def redrawn(model: nn.Module, seed: int) -> Iterator[nn.Module]:
    """`model` with the entries of every parameter resampled with replacement; they come back, bit for bit, on leaving.

    Each parameter has its own random stream, which depends on `seed` and its name; tied ones stay tied. Inside the
    block the weights are held twice.
    """
    original = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    try:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                stream = torch.Generator().manual_seed(seed_of(seed, "redrawn", name))
                entries = original[name].flatten()
                for block in parameter.view(-1).split(BLOCK):
                    block.copy_(entries[torch.randint(len(entries), block.shape, generator=stream)])
        yield model
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(original[name])
