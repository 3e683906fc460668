"""Direct logit attribution: what each part of the model adds to the logit of one token at the last position.

The last residual stream is the sum of the embedding and of everything that attention and FFNs wrote; with the σ of the
final norm held fixed, a token's logit is the sum of what each of them adds to it (Elhage et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.transformer import Decoder
from orchestrator.interventions.readout import Readout, fitted
from orchestrator.interventions.subject import Subject
from orchestrator.interventions.writes import Branch, Traced

TOLERANCE = 1e-3  # nats that the parts of a logit may miss it by, in proportion to the largest of them


@dataclass(frozen=True)
class BranchShare:
    """A branch's part of the logit, and the parts of that: they and `constant` add up to it. None where not told."""

    logit: float
    inner: Tensor | None  # of each head, or of each FFN position [n]
    constant: float


@dataclass(frozen=True)
class LayerShare:
    """The parts of the logit that one layer's branches write."""

    attention: BranchShare
    ffn: BranchShare


@dataclass(frozen=True)
class Attribution:
    """The parts of a token's logit, which is their sum: each is the part above the mean over the vocabulary.

    That mean moves no probability. `constant` is what the biases of final norm and head add.
    """

    logit: float
    embedding: float
    constant: float
    layers: list[LayerShare]


def attribute(subject: Subject, traced: Traced, readout: Readout, token: int) -> Attribution | None:
    """The parts of the logit of `token`, above the mean of all logits, at the last position.

    None where layers do more than add attention and FFN to the stream, so that the parts do not make up the logit.
    """
    direction = fitted(readout.direction(token) - readout.mean_direction, traced.streams[0].shape[-1])
    layers = []
    for layer, branches in enumerate(traced.branches):
        if branches is None:
            return None
        attention, ffn = branches
        layers.append(LayerShare(_share(attention, direction, heads_of(subject, layer)), _share(ffn, direction, None)))
    bias = 0.0 if readout.bias is None else float(readout.bias[token].double() - readout.bias.double().mean())
    centre = readout.table[token].double() - readout.table.mean(0, dtype=torch.float64)
    embedding = _along(traced.streams[0][-1], direction)
    constant = float(centre @ readout.norm.shift) + bias
    parts = [embedding, constant, *(of.logit for layer in layers for of in (layer.attention, layer.ffn))]
    logit = _along(traced.streams[-1][-1], direction) + constant
    if abs(sum(parts) - logit) > TOLERANCE * max(map(abs, parts)):
        return None
    return Attribution(logit, embedding, constant, layers)


def heads_of(subject: Subject, layer: int) -> int | None:
    """Number of query heads of a layer; None where the model does not say."""
    if isinstance(subject.model, Decoder):
        return subject.model.spec.layers[layer].heads
    config: Any = subject.model.config
    heads = getattr(config.get_text_config(), "num_attention_heads", None)
    return heads if isinstance(heads, int) else None


def _share(branch: Branch, direction: Tensor, heads: int | None) -> BranchShare:
    """`heads`: how many equal parts the last matrix reads; None for each entry by itself."""
    logit = _along(branch.write[-1], direction)
    if branch.output is None or branch.inner is None:
        return BranchShare(logit, None, 0.0)
    width = branch.write.shape[-1]
    inner = branch.inner[-1].double() * branch.output.along(direction[:width])
    if heads is not None and len(inner) % heads:
        return BranchShare(logit, None, 0.0)
    inner = inner if heads is None else inner.view(heads, -1).sum(-1)
    return BranchShare(logit, inner, _along(branch.output.constant, direction))


def _along(write: Tensor, direction: Tensor) -> float:
    """The part of a write along a direction of the stream [D]; a narrow layer writes its first coordinates."""
    return float(write.double() @ direction[: len(write)])
