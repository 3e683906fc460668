"""Damage: how much worse a model does at each document under each edit of each layer (SCIENCE §9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.interventions.calibration import Calibration
from orchestrator.interventions.documents import Batch
from orchestrator.interventions.edits import Edit
from orchestrator.interventions.passes import Pass
from orchestrator.interventions.subject import Subject

Results = MutableMapping[int, np.ndarray]  # place of a batch → what `_of_batch` gives

CHUNK = 128  # positions whose probabilities are in memory at once


@dataclass(frozen=True)
class Trial:
    """One edit of one layer."""

    name: str
    layer: int


@dataclass(frozen=True)
class Damage:
    """Per trial and document, sums over the predicted tokens; for an encoder one value a document.

    `intact` [documents]: the intact model's losses in nats (0 for an encoder). `rise` [trials, documents]: the rise of
    the loss; for an encoder 1 − cos of its embedding with the intact one. `divergence` [trials, documents]:
    KL(intact ‖ edited) in nats; NaN for an encoder. `tokens` [documents]: predicted tokens; 1 for an encoder.
    """

    trials: tuple[Trial, ...]
    intact: np.ndarray
    rise: np.ndarray
    divergence: np.ndarray
    tokens: np.ndarray


def measure(
    subject: Subject,
    batches: Sequence[Batch],
    edits: Mapping[str, Edit],
    trials: Sequence[Trial],
    calibration: Calibration,
    done: Results,
    advance: Callable[[int], None],
) -> Damage:
    """The damage that each trial does.

    Batches in `done` are not computed again; it gets each that is. `advance` is given the number of trials of a batch
    that have just been done.
    """
    count = 1 + max(place for batch in batches for place in batch.documents)
    table = np.zeros((2 + 2 * len(trials), count))
    for place, batch in enumerate(batches):
        if place in done:
            advance(len(trials))
        else:
            done[place] = _of_batch(subject, batch, edits, trials, calibration, advance)
        table[:, batch.documents] = done[place]
    intact, tokens, *rest = table
    rise, divergence = np.split(np.array(rest), 2)
    return Damage(tuple(trials), intact, rise, divergence, tokens)


def _of_batch(
    subject: Subject,
    batch: Batch,
    edits: Mapping[str, Edit],
    trials: Sequence[Trial],
    calibration: Calibration,
    advance: Callable[[int], None],
) -> np.ndarray:
    """[2 + 2·trials, documents]: intact losses, tokens, then the rises and the divergences of every trial."""
    one = Pass(subject, batch.tokens, batch.mask)
    compare = (Predictions if subject.is_causal else Embeddings)(one)
    rises, divergences = [], []
    for trial in trials:
        edited = one.edited(trial.layer, edits[trial.name].apply(subject, trial.layer, calibration))
        rise, divergence = compare(edited)
        rises.append(rise)
        divergences.append(divergence)
        advance(1)
    return np.array([compare.intact, compare.tokens, *rises, *divergences])


class Predictions:
    """Compares the next-token predictions of an edited causal model with the intact one's, document by document."""

    def __init__(self, one: Pass) -> None:
        self._seen = one.mask[:, 1:]  # positions whose next token is in the document
        self._targets = one.tokens[:, 1:][self._seen]
        self._intact = _log_probabilities(one.output[:, :-1][self._seen])  # [predicted tokens, V]
        self._losses = self._loss(self._intact)
        self._of = torch.arange(len(one.mask), device=one.mask.device).unsqueeze(1).expand_as(self._seen)[self._seen]
        self._documents = len(one.mask)
        self.intact = self._sums(self._losses)
        self.tokens = self._sums(torch.ones_like(self._losses))

    def __call__(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the rise of the loss and of KL(intact ‖ edited), per document."""
        edited = _log_probabilities(logits[:, :-1][self._seen])
        divergence = torch.cat(
            [
                (before.exp() * (before - after)).sum(-1, dtype=torch.float64)
                for before, after in zip(self._intact.split(CHUNK), edited.split(CHUNK), strict=True)
            ]
        )
        return self._sums(self._loss(edited) - self._losses), self._sums(divergence)

    def _loss(self, log_probabilities: Tensor) -> Tensor:
        return -log_probabilities.gather(1, self._targets.unsqueeze(1)).squeeze(1).double()

    def _sums(self, values: Tensor) -> np.ndarray:
        return values.new_zeros(self._documents).index_add_(0, self._of, values).cpu().numpy()


def _log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(logits.float(), dim=-1)


class Embeddings:
    """Compares an encoder's embeddings, the means of the last hidden states, with the intact ones."""

    def __init__(self, one: Pass) -> None:
        self._mask = one.mask.unsqueeze(-1)
        self._intact = self._pooled(one.output)
        self.intact = np.zeros(len(one.mask))
        self.tokens = np.ones(len(one.mask))

    def __call__(self, hidden: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """1 − cos, and NaN, per document."""
        distance = 1 - F.cosine_similarity(self._pooled(hidden), self._intact)
        return distance.cpu().numpy(), np.full(len(distance), np.nan)

    def _pooled(self, hidden: Tensor) -> Tensor:
        return (hidden * self._mask).double().sum(1) / self._mask.sum(1)
