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
from orchestrator.interventions.passes import Output, Pass
from orchestrator.interventions.subject import Subject

Results = MutableMapping[int, np.ndarray]  # place of a batch → what `_of_batch` gives

# The rise of the loss (an encoder's 1 − cos), KL(intact ‖ edited), absolute and squared rises, and ‖edited‖/‖intact‖ of
# the stream after the last layer.
EFFECTS = ("rise", "divergence", "absolute", "squared", "lengthening")
CHUNK = 128  # positions whose probabilities are in memory at once


@dataclass(frozen=True)
class Trial:
    """One edit of one layer."""

    name: str
    layer: int


@dataclass(frozen=True)
class Damage:
    """Per trial and document, sums over the predicted tokens; for an encoder one value a document.

    `intact` [documents]: the intact model's losses in nats (0 for an encoder). `tokens` [documents]: predicted tokens;
    1 for an encoder. `effects`: name of `EFFECTS` → [trials, documents].
    """

    trials: tuple[Trial, ...]
    intact: np.ndarray
    tokens: np.ndarray
    effects: Mapping[str, np.ndarray]


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
    table = np.zeros((2 + len(EFFECTS) * len(trials), count))
    for place, batch in enumerate(batches):
        if place in done:
            advance(len(trials))
        else:
            done[place] = _of_batch(subject, batch, edits, trials, calibration, advance)
        table[:, batch.documents] = done[place]
    effects = dict(zip(EFFECTS, np.split(table[2:], len(EFFECTS)), strict=True))
    return Damage(tuple(trials), table[0], table[1], effects)


def _of_batch(
    subject: Subject,
    batch: Batch,
    edits: Mapping[str, Edit],
    trials: Sequence[Trial],
    calibration: Calibration,
    advance: Callable[[int], None],
) -> np.ndarray:
    """[2 + effects·trials, documents]: intact losses, tokens, then every effect of every trial."""
    one = Pass(subject, batch.tokens, batch.mask)
    compare = (Predictions if subject.is_causal else Embeddings)(one)
    found: list[Sequence[np.ndarray]] = []  # of each trial, its effects [documents]
    for trial in trials:
        found.append(compare(one.edited(trial.layer, edits[trial.name].apply(subject, trial.layer, calibration))))
        advance(1)
    return np.array([compare.intact, compare.tokens, *(effect for of in zip(*found, strict=True) for effect in of)])


class Predictions:
    """Compares the next-token predictions of an edited causal model with the intact one's, document by document."""

    def __init__(self, one: Pass) -> None:
        self._seen = one.mask[:, 1:]  # positions whose next token is in the document
        self._targets = one.tokens[:, 1:][self._seen]  # [predicted tokens]
        self._intact = one.output.result[:, :-1]  # logits [B, T-1, V]
        self._length = self._lengths(one.output)
        self._of = torch.arange(len(one.mask), device=one.mask.device).unsqueeze(1).expand_as(self._seen)[self._seen]
        self._documents = len(one.mask)
        self._losses, _ = self._compared(self._intact)
        self.intact = self._sums(self._losses)
        self.tokens = self._sums(torch.ones_like(self._losses))

    def __call__(self, output: Output) -> tuple[np.ndarray, ...]:
        """`EFFECTS`, per document."""
        losses, divergence = self._compared(output.result[:, :-1])
        rise = losses - self._losses
        lengthening = self._lengths(output) / self._length
        return tuple(map(self._sums, (rise, divergence, rise.abs(), rise.square(), lengthening)))

    def _compared(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and KL(intact ‖ these logits), of every predicted token; so few at a time that memory holds them."""
        losses, divergences = [], []
        for places, targets in zip(self._seen.nonzero().split(CHUNK), self._targets.split(CHUNK), strict=True):
            rows, columns = places.unbind(1)
            after, before = (F.log_softmax(of[rows, columns].float(), dim=-1) for of in (logits, self._intact))
            losses.append(-after.gather(1, targets.unsqueeze(1)).squeeze(1).double())
            divergences.append((before.exp() * (before - after)).sum(-1, dtype=torch.float64))
        return torch.cat(losses), torch.cat(divergences)

    def _lengths(self, output: Output) -> Tensor:
        return output.stream[:, :-1][self._seen].double().norm(dim=-1)

    def _sums(self, values: Tensor) -> np.ndarray:
        return values.new_zeros(self._documents).index_add_(0, self._of, values).cpu().numpy()


class Embeddings:
    """Compares an encoder's embeddings, the means of the last hidden states, with the intact ones."""

    def __init__(self, one: Pass) -> None:
        self._mask = one.mask
        self._intact = self._pooled(one.output.result)
        self._length = one.output.stream.double().norm(dim=-1)
        self.intact = np.zeros(len(one.mask))
        self.tokens = np.ones(len(one.mask))

    def __call__(self, output: Output) -> tuple[np.ndarray, ...]:
        """`EFFECTS`, per document: 1 − cos in place of the rise, and NaN for what only predictions have."""
        distance = 1 - F.cosine_similarity(self._pooled(output.result), self._intact)
        absent = torch.full_like(distance, torch.nan)
        lengthening = self._pooled((output.stream.double().norm(dim=-1) / self._length).unsqueeze(-1)).squeeze(-1)
        return tuple(of.cpu().numpy() for of in (distance, absent, absent, absent, lengthening))

    def _pooled(self, hidden: Tensor) -> Tensor:
        mask = self._mask.unsqueeze(-1)
        return hidden.double().where(mask, 0).sum(1) / mask.sum(1)
