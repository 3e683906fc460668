"""Losses: what a model loses at each document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator.interventions.damage import Predictions
from orchestrator.interventions.documents import Batch, Document
from orchestrator.interventions.intervals import mean_and_interval
from orchestrator.interventions.measured import Cost, known
from orchestrator.interventions.passes import Pass
from orchestrator.interventions.subject import Subject


@dataclass(frozen=True)
class Losses:
    """Per document, the sum of the losses of its predicted tokens, in nats, and how many these are."""

    domains: np.ndarray  # of each document [documents]
    sums: np.ndarray
    tokens: np.ndarray

    def means(self) -> dict[str, float]:
        """Domain → nats per token."""
        return {
            domain: float(self.sums[where].sum() / self.tokens[where].sum()) for domain, where in self._places().items()
        }

    def rises(self, before: Losses) -> Cost:
        """Domain → how much more than `before` is lost, nats per token, with a 95 % interval over documents."""
        found = {}
        for domain, where in self._places().items():
            (ends,) = mean_and_interval((self.sums - before.sums)[None, where], self.tokens[where])
            found[domain] = {name: known(end) for name, end in zip(("mean", "low", "high"), ends, strict=True)}
        return found

    def _places(self) -> dict[str, np.ndarray]:
        return {domain: self.domains == domain for domain in dict.fromkeys(self.domains.tolist())}


def losses(
    subject: Subject, documents: Sequence[Document], groups: Sequence[Batch], advance: Callable[[int], None]
) -> tuple[Losses, Tensor]:
    """The losses of a causal model, and the logits of the first batch's first document [T, V].

    `advance` is given 1 after each batch.
    """
    sums, tokens = np.zeros(len(documents)), np.zeros(len(documents))
    first = torch.empty(0)
    for group in groups:
        one = Pass(subject, group.tokens, group.mask)
        found = Predictions(one)
        sums[list(group.documents)], tokens[list(group.documents)] = found.intact, found.tokens
        if not len(first):
            first = one.output.result[0][one.mask[0]].cpu()
        advance(1)
    return Losses(np.array([of.domain for of in documents]), sums, tokens), first
