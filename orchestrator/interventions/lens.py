"""The logit lens: the predictions that final norm and head make of the residual stream after each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.interventions.passes import replaced
from orchestrator.interventions.subject import Subject
from orchestrator.interventions.writes import Traced

TOP = 5  # tokens of a place that are kept


@dataclass(frozen=True)
class Lens:
    """The lens at one depth, at each of T positions. The model's own prediction there is the *answer*."""

    tokens: Tensor  # most probable first, int64 [T, TOP]
    probabilities: Tensor  # theirs [T, TOP]
    rank: Tensor  # tokens that are more probable than the answer, int64 [T]
    answer: Tensor  # probability of the answer [T]
    divergence: Tensor  # KL(model ‖ lens), nats [T]
    loss: Tensor  # of the token that follows, nats [T-1]


@torch.inference_mode()
def logits(subject: Subject, tokens: Tensor, stream: Tensor) -> Tensor:
    """Logits [T, V] that the model makes of the residual stream [T, D] as if it were that after the last layer.

    nostalgebraist (2020), "interpreting GPT: the logit lens". The model itself is run, without its layers: its final
    norm, its head, and any scale or soft-cap of its logits.
    """
    with replaced(subject.layers, [lambda *_, **__: stream[None]] * len(subject.layers)):
        return subject.run(tokens[None], torch.ones_like(tokens[None], dtype=torch.bool))[0]


def lenses(subject: Subject, traced: Traced) -> Iterator[Lens]:
    """The lens at every depth: x_0, which the first layer reads, to x_L after the last."""
    tokens = traced.tokens.to(traced.logits.device)
    final = traced.logits.double().log_softmax(-1)
    answers = final.argmax(-1, keepdim=True)
    for stream in traced.streams:
        shown = logits(subject, tokens, stream).double().log_softmax(-1)  # [T, V]
        top = shown.topk(min(TOP, shown.shape[-1]), -1)
        of_answer = shown.gather(-1, answers)
        yield Lens(
            tokens=top.indices,
            probabilities=top.values.exp(),
            rank=(shown > of_answer).sum(-1),
            answer=of_answer[:, 0].exp(),
            divergence=F.kl_div(shown, final, reduction="none", log_target=True).sum(-1),
            loss=F.nll_loss(shown[:-1], tokens[1:], reduction="none"),
        )


def stays_from(ranks: Sequence[int]) -> int:
    """The first of the places from which on every rank is 0, the answer's place in front; their number where none is.

    `ranks` along the depth: the last is that of the model itself.
    """
    first = len(ranks)
    while first and ranks[first - 1] == 0:
        first -= 1
    return first
