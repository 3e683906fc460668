"""The embedding as the writer before the first layer (SCIENCE §1, `sink_mean`)."""

from __future__ import annotations

from dataclasses import replace

import torch

from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.composition import Compositions, Side
from orchestrator.forensics.measures.resampling import entries_of
from orchestrator.forensics.measures.spectrum import gram
from orchestrator.forensics.weights.memory import trim

BLOCK = 2048  # rows of the table in memory at once
SAMPLED = 2048  # rows, evenly spread, that the null resamples


def add_embedding(model: CheckpointModel, compositions: Compositions, device: torch.device) -> None:
    """Add EᵀE [d, d] of the embedding table E [V, d] to `compositions`; an empty side where there is none."""
    if model.embedding_shape is None:
        width = compositions.width
        compositions.add_write(torch.zeros(width, width), Side(width, []))
        return
    rows, width = model.embedding_shape
    every = max(1, rows // SAMPLED)
    total, sample = torch.zeros(width, width, device=device), []
    for block in model.embedding(BLOCK):
        on_device = block.to(device)
        total += gram(on_device)
        sample.append(on_device[::every].clone())
        trim()
    model.tensors.release()
    entries = replace(entries_of(torch.cat(sample)), count=rows * width, mean=float(total.trace()) / (rows * width))
    compositions.add_write(total, Side(width, [entries]))
