"""Models that several processes train together: gathering and making shards, and collectives over ranks.

Under FSDP2 a parameter is a DTensor, and each rank holds some of its rows. With one process every function here
returns its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """True for a DTensor."""
    return hasattr(tensor, "full_tensor")  # only a DTensor has it; importing that class would take a second


def gather(tensor: Tensor) -> Tensor:
    """The full tensor; where the shards are partial sums, their sum. Every rank must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of the tensor, in the same memory; enough for elementwise arithmetic."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A full tensor, equal on every rank, moved to the device of `reference` and sharded as it is."""
    tensor = tensor.to(reference.device)
    if not is_sharded(reference):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(reference, DTensor)
    # each rank has the full tensor and slices its own shard: nothing is sent
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean over ranks of `tensor`, which differs between them."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def broadcast(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gradients(loss: Tensor, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of `loss` by each of `tensors`; None where `loss` does not depend on it.

    The parameters of a sharded model are in no graph: its forward pass uses gathered copies, and only `backward` puts
    the mean of their gradients over ranks into `grad`. So the `grad` of every one of the model's `parameters`, which
    training may still need, is put aside before and restored after.
    """
    if not any(map(is_sharded, parameters)):
        return list(torch.autograd.grad(loss, tensors, allow_unused=True))
    leaves = [*parameters, *(tensor for tensor in tensors if not is_sharded(tensor))]
    before = [leaf.grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        loss.backward()
        return [tensor.grad for tensor in tensors]
    finally:
        for leaf, gradient in zip(leaves, before, strict=True):
            leaf.grad = gradient
