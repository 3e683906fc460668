"""A fork of a run: training that leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sidecar.channels import Channel
from sidecar.sharded import gather, local_shard


@contextmanager
def forked(model: nn.Module, optimizer: Any, channels: Iterable[Channel]) -> Iterator[None]:
    """Enclose training: afterwards everything is as before, bit for bit.

    Restores parameters, buffers, gradients, the training flags of modules, the optimizer's `state` and
    `param_groups` (entries that did not exist are gone again), the channels' memory, and torch's generators, so that
    all forks of one state draw the same numbers. The fork works on copies of the optimizer's tensors, and the
    originals return; parameters keep their place in memory, and their values return. Multipliers are not restored.
    """
    parameters, modes = list(model.parameters()), [(module, module.training) for module in model.modules()]
    tensors = [local_shard(tensor.detach()) for tensor in (*parameters, *model.buffers())]
    values = [tensor.clone() for tensor in tensors]
    gradients = [parameter.grad for parameter in parameters]
    memories = [(channel, {k: gather(t).clone() for k, t in channel.memory().items()}) for channel in channels]
    state, groups = dict(optimizer.state), [dict(group) for group in optimizer.param_groups]
    for parameter in parameters:
        parameter.grad = None
    for key, entry in state.items():
        optimizer.state[key] = _copied(entry)
    for group in optimizer.param_groups:
        group.update({key: _copied(value) for key, value in group.items() if key != "params"})
    try:
        with torch.random.fork_rng(sorted({p.device.index for p in parameters if p.is_cuda})):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, kept in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(kept)
        for channel, memory in memories:
            channel.remember(memory)


def _copied(value: Any) -> Any:
    """A copy whose tensors share no memory with those of `value`."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value)) if type(value) in (list, tuple) else copy.deepcopy(value)
    return copy.deepcopy(value)
