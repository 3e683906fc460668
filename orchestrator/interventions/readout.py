"""The readout: the final norm and the head, which turn the last residual stream into logits."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.transformer import Decoder, head_table, read_prefix
from orchestrator.interventions.frozen import FrozenNorm, freeze, identity
from orchestrator.interventions.subject import Subject


@dataclass(frozen=True)
class Readout:
    """The final norm at one position, σ held fixed, and the head.

    `norm` reads the first coordinates of the stream; all of them in other models than ours. Logits are those of the
    head: a scale or soft-cap that follows it is left out.
    """

    norm: FrozenNorm
    table: Tensor  # [V, d]
    bias: Tensor | None  # [V]

    def direction(self, token: int) -> Tensor:
        """The direction in the stream [d], float64, along which the token's logit grows."""
        return self.norm.back(self.table[token].double())

    @property
    def mean_direction(self) -> Tensor:
        """The direction along which the mean of all logits grows."""
        return self.norm.back(self.table.mean(0, dtype=torch.float64))

    def promoted(self, writes: Tensor) -> Tensor:
        """The part that each write to the stream [n, d] adds to every logit: [n, V]."""
        read = self.norm(fitted(writes.double(), self.table.shape[1]))
        return read.to(self.table.dtype) @ self.table.T


def fitted(x: Tensor, width: int) -> Tensor:
    """The first `width` coordinates of x's last axis, with zeros for those that x has not."""
    return F.pad(x, (0, width - x.shape[-1]))


def find_readout(subject: Subject, tokens: Tensor, stream: Tensor) -> Readout | None:
    """The readout at the last of `tokens` [T], whose last stream is `stream` [T, D].

    None where what stands between the layers and the head is no norm, such as a projection.
    """
    if isinstance(subject.model, Decoder):
        body = subject.model.model
        head: Any = body.embed_tokens if subject.model.spec.tie_embeddings else subject.model.lm_head
        norm = freeze(body.norm, read_prefix(stream[-1], subject.model.spec.head_width))
        return None if norm is None else Readout(norm, head_table(body, head).detach(), None)
    model: Any = subject.model
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    found = _between(subject, tokens, head, stream)
    if found is None:
        return None
    norm = identity(stream.shape[-1], stream.device) if found == "nothing" else freeze(found, stream[-1])
    bias = None if head.bias is None else head.bias.detach()
    return None if norm is None else Readout(norm, head.weight.detach(), bias)


def _between(subject: Subject, tokens: Tensor, head: nn.Module, stream: Tensor) -> Any:
    """The module that reads the last stream and writes what the head reads; "nothing" where the head reads it."""
    inside = {id(part) for layer in subject.layers for part in layer.modules()}
    read: list[Tensor] = []
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = inputs[0] if inputs else None
        if not isinstance(first, Tensor) or not isinstance(output, Tensor) or first.shape[-2:] != stream.shape:
            return
        if torch.equal(first[0], stream):
            seen.append((module, output))

    with ExitStack() as hooks, torch.inference_mode():
        for module in subject.model.modules():
            if id(module) not in inside and module is not head and not isinstance(module, nn.Dropout):
                hooks.callback(module.register_forward_hook(note).remove)
        hooks.callback(head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])).remove)
        subject.run(tokens[None], torch.ones_like(tokens[None], dtype=torch.bool))
    if len(read) != 1 or read[0].shape[-2:] != stream.shape:
        return None
    for module, output in seen:
        if torch.equal(output[0], read[0][0]):
            return module
    return "nothing" if torch.equal(read[0][0], stream) else None
