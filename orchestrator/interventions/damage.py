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
from orchestrator.interventions.partial import Place
from orchestrator.interventions.passes import Output, Pass
from orchestrator.interventions.subject import Subject

Results = MutableMapping[Place, np.ndarray]  # place of a batch, and of a trial or None → as `_of_batch` gives it

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

    What is in `done` is not computed again; it gets everything else as soon as it is known. `advance` is given the
    number of trials of a batch that have just been done.
    """
    count = 1 + max(place for batch in batches for place in batch.documents)
    intact, table = np.zeros((2, count)), np.zeros((len(trials), len(EFFECTS), count))
    for place, batch in enumerate(batches):
        intact[:, batch.documents], table[:, :, batch.documents] = _of_batch(
            subject, place, batch, edits, trials, calibration, done, advance
        )
    effects = dict(zip(EFFECTS, table.transpose(1, 0, 2), strict=True))
    return Damage(tuple(trials), intact[0], intact[1], effects)


def _of_batch(
    subject: Subject,
    place: int,
    batch: Batch,
    edits: Mapping[str, Edit],
    trials: Sequence[Trial],
    calibration: Calibration,
    done: Results,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Intact losses and tokens [2, documents], then every effect of every trial [trials, effects, documents]."""
    missing = [index for index in range(len(trials)) if (place, index) not in done]
    if known := len(trials) - len(missing):
        advance(known)
    if missing or (place, None) not in done:
        one = Pass(subject, batch.tokens, batch.mask)
        compare = (Predictions if subject.is_causal else Embeddings)(one)
        done[place, None] = np.array([compare.intact, compare.tokens])
        for index in missing:
            edit = edits[trials[index].name].apply(subject, trials[index].layer, calibration)
            done[place, index] = np.array(compare(one.edited(trials[index].layer, edit)))
            advance(1)
    effects = [done[place, index] for index in range(len(trials))]
    return done[place, None], np.reshape(effects, (len(trials), len(EFFECTS), len(batch.documents)))


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
