"""A sidecar in a training loop of one process and of two, forked: prints {loop: [what each rank ends with]} as JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from sidecar import Sidecar, rules
from sidecar.sharded import gather


class Net(nn.Module):
    """Widths that two ranks cannot halve, and a parameter with fewer rows than there are ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x)


def train(loop: str, credit: str, rank: int, size: int) -> dict[str, Any]:
    """`replicas`: every rank has the whole model, the mean of gradients, and a seed of its own, which must not tell."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(16, 5)
    y = x.sin().sum(1, keepdim=True)
    if loop == "fsdp":
        for module in (*model.layers, model):
            fully_shard(module, reshard_after_forward=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def loss(rows: slice) -> Tensor:
        return (model(x[rows][rank::size]) - y[rows][rank::size]).square().mean()

    def descend(step: int) -> None:
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        loss(slice(0, 8)).backward()
        if loop == "replicas":
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= size
        with sidecar.applied(0.01):
            optimizer.step()

    def rollout(step: int, count: int) -> None:
        for ahead in range(step, step + count):
            descend(ahead)

    learning: dict[str, Any] = {
        "interval": 2, "warmup": 0, "features": ["unit", "log_norm", "row_cv", "momentum_alignment"],
    } if credit == "factored" else {
        "interval": 4, "steps": 12, "horizon": 0.005, "pairs": 1, "rollout": rollout,
        "coefficients": {"decay": {"depth": 0.0}, "lr_scale": {"amount": 0.0, "time": 0.0}},
    }  # fmt: skip
    sidecar = Sidecar(
        model, lambda interval: loss(slice(8, 16)), lr=0.01, weight_decay=0.1, seed=rank if loop == "replicas" else 0,
        channels=["decay", "lr_scale"], optimizer=optimizer, credit=credit, decay="cautious", **learning,
    )  # fmt: skip
    kept = True
    for step in range(12):
        before = [None if p.grad is None else gather(p.grad).clone() for p in model.parameters()]
        sidecar.before_step(step)
        after = [None if p.grad is None else gather(p.grad) for p in model.parameters()]
        kept &= all(a is b is None or torch.equal(a, b) for a, b in zip(before, after, strict=True))
        descend(step)
    rules.SINGULAR_VALUES = 5
    ruled = Sidecar(model, loss, lr=0.01, weight_decay=0.1, seed=0, mode="rule")  # type: ignore[arg-type]
    ruled.before_step(0)
    return {
        "ruled": ruled.multipliers("decay"),
        "values": sidecar.record()["values"],
        "reward": sidecar.record()["reward"] or 0.0,  # forks have a twin for it
        "weights": torch.cat([gather(p.detach()).flatten() for p in model.parameters()]).tolist(),
        "gradients_kept": kept,
    }


def forked(work: Callable[[int], None], size: int) -> None:
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            work(rank)
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(f"{size} ranks did not all finish")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        found = {}
        cases = product((("alone", 1), ("fsdp", 2), ("replicas", 2)), ("factored", "forks"))
        for (loop, size), credit in cases:
            name = f"{loop}, {credit}"
            files = [Path(scratch, f"{name}-{rank}") for rank in range(size)]

            def work(
                rank: int,
                loop: str = loop,
                credit: str = credit,
                size: int = size,
                files: list[Path] = files,
                name: str = name,
            ) -> None:
                if size > 1:
                    store = dist.FileStore(f"{scratch}/{name}.store", size)
                    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
                files[rank].write_text(json.dumps(train(loop, credit, rank, size)))
                if size > 1:
                    dist.destroy_process_group()

            forked(work, size)
            found[name] = [json.loads(file.read_text()) for file in files]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
