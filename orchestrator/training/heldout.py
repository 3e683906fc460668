"""The loss of a model on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.transformer import Decoder
from orchestrator.training.compute import Compute
from orchestrator.training.distributed import World
from sidecar.sharded import all_reduce_mean


class HeldoutLoss:
    """Mean next-token loss in nats per token, over `micro_batch` rows at a time; ranks share the rows."""

    def __init__(self, model: Decoder, compute: Compute, world: World, micro_batch: int) -> None:
        self.model, self.compute, self.world, self.micro_batch = model, compute, world, micro_batch

    @torch.no_grad()
    def mean(self, rows: Tensor) -> float:
        """The mean loss over `rows` [n, T+1]."""
        return all_reduce_mean(torch.stack(list(self.parts(rows))).sum()).item()

    def parts(self, rows: Tensor) -> Iterator[Tensor]:
        """Terms that sum to the mean loss, one per micro-batch, with their graphs where gradients are enabled.

        With several ranks, the mean loss is the mean over ranks of these sums.
        """
        for part in rows.split(self.micro_batch):
            mine, factor = self.world.shard_rows(part)
            with self.compute.autocast(), self.compute.compiling_nothing():
                losses = self.model.loss(mine.to(self.compute.device), reduction="none")
            yield losses.double().sum() / (rows[:, 1:].numel() / factor)
