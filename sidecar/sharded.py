"""A model that several processes train together: what its tensors are as wholes, and what its ranks agree on.

Under FSDP2 a parameter is a DTensor, of which every rank holds some rows. With one process everything here hands
back what it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # only DTensors have it, and their module takes a second to import


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from its shards, summed where these are sums over shards. Every rank must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of the tensor, in the same memory: all that arithmetic by element needs."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, on the device and in the shards of `reference`."""
    tensor = tensor.to(reference.device)
    if not is_sharded(reference):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(reference, DTensor)
    # every rank has it already and cuts out its own: nothing is sent
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


def ranks() -> int:
    """The processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean(tensor: Tensor) -> Tensor:
    """The mean over ranks of a tensor that each has of its own."""
    if ranks() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / ranks()


def from_first(value: Any) -> Any:
    """`value` as the first rank has it."""
    if ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gradients(loss: Tensor, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of `loss` by each of `tensors`; None where it does not depend on one.

    The parameters of a sharded model are in no graph: the forward pass works on copies gathered for it, and only
    `backward` reduces what it leaves in them, to the mean over ranks, into `grad`. There, what training may have
    left is set aside and put back, in all of the model's `parameters`.
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
