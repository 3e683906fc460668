"""The loss of a model on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.transformer import Decoder
from orchestrator.training.compute import Compute
from orchestrator.training.distributed import World


class HeldoutLoss:
    """Mean next-token loss, nats per token, computed `micro_batch` rows at a time and shared among ranks."""

    def __init__(self, model: Decoder, compute: Compute, world: World, micro_batch: int) -> None:
        self.model, self.compute, self.world, self.micro_batch = model, compute, world, micro_batch

    @torch.no_grad()
    def mean(self, rows: Tensor) -> float:
        """The mean loss over `rows` [n, T+1]."""
        return self.world.all_reduce_mean(torch.stack(list(self.parts(rows))).sum()).item()

    def parts(self, rows: Tensor) -> Iterator[Tensor]:
        """One term for each micro-batch of `rows`, with its graph where gradients are enabled.

        The mean loss is their sum; with several ranks, the mean over ranks of their sums.
        """
        for part in rows.split(self.micro_batch):
            mine, factor = self.world.shard_rows(part)
            with self.compute.autocast():
                losses = self.model.loss(mine.to(self.compute.device), reduction="none")
            yield losses.double().sum() / (rows[:, 1:].numel() / factor)
