"""The embedding as the writer before the first layer (SCIENCE §1, `sink_mean`)."""

from __future__ import annotations

from dataclasses import replace

import torch

from orchestrator.forensics.architecture.anatomy import Anatomy
from orchestrator.forensics.measures.composition import Compositions, Side
from orchestrator.forensics.measures.resampling import entries_of
from orchestrator.forensics.measures.spectrum import gram
from orchestrator.forensics.weights.memory import trim

BLOCK = 2048  # rows of the table in memory at once
SAMPLED = 2048  # rows, evenly spread, whose entries stand for all in the null


def add_embedding(anatomy: Anatomy, compositions: Compositions, device: torch.device) -> None:
    """Hand EᵀE [d, d] of the embedding table E [V, d] to `compositions`; an empty side where there is none."""
    if anatomy.embedding_shape is None:
        width = compositions.width
        compositions.add_write(torch.zeros(width, width), Side(width, []))
        return
    rows, width = anatomy.embedding_shape
    every = max(1, rows // SAMPLED)
    total, sample = torch.zeros(width, width, device=device), []
    for block in anatomy.embedding(BLOCK):
        on_device = block.to(device)
        total += gram(on_device)
        sample.append(on_device[::every].clone())
        trim()
    anatomy.tensors.release()
    entries = replace(entries_of(torch.cat(sample)), count=rows * width, mean=float(total.trace()) / (rows * width))
    compositions.add_write(total, Side(width, [(entries, rows)]))
