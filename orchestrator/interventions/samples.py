"""A model's own samples, on which interventions are judged where no text is at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.transformer import Decoder, seed_of
from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted, duration
from orchestrator.interventions.documents import AT_ONCE, LENGTH, Document
from orchestrator.interventions.partial import Place
from orchestrator.interventions.subject import Subject

DOMAIN = "own samples"
SEED = 0  # a part of the definition: the same samples whenever a model is judged
FEW = 8  # tokens by which the time is told


def sampled(
    subject: Subject,
    count: int,
    length: int | None,
    announce: Callable[[str], None] = lambda _: None,
    done: MutableMapping[Place, np.ndarray] | None = None,
) -> list[Document]:
    """`count` documents of `length` tokens (128), drawn from the model at temperature 1 (SCIENCE §9).

    `announce` is given a sentence before minutes are spent. What is in `done` is not drawn again; it gets the others as
    soon as they are known. Raises `UserError` for an encoder, which writes nothing, and for a length that the model
    cannot write.
    """
    if not subject.is_causal:
        raise UserError(f"{subject.name} is an encoder and writes no text: give one with --data in place of --own.")
    length = min(LENGTH, subject.context) if length is None else length
    if length > subject.context:
        raise UserError(f"--length {length} is more than the {subject.context} tokens of {subject.name}: lower it.")
    done = {} if done is None else done
    at_once = max(1, AT_ONCE // length)
    sizes = dict(enumerate(min(at_once, count - first) for first in range(0, count, at_once)))  # place → texts
    if left := [size for place, size in sizes.items() if (place, "texts") not in done]:
        announce(_cost(subject, left, length))
    for place, size in sizes.items():
        if (place, "texts") not in done:
            done[place, "texts"] = _drawn(subject, place, size, length)
    return [Document(DOMAIN, tuple(row)) for place in sizes for row in done[place, "texts"].astype(int).tolist()]


def _drawn(subject: Subject, place: int, size: int, length: int) -> np.ndarray:
    """A group of texts in tokens [size, length], a function of the seed and its place."""
    with torch.random.fork_rng(devices=_devices(subject)):
        torch.manual_seed(seed_of(SEED, "samples", str(place)))
        starts = torch.randint(subject.vocabulary, (size, 1))
        return _continued(subject, starts.to(subject.device), length).cpu().numpy().astype(float)


def _devices(subject: Subject) -> list[torch.device]:
    """The GPUs whose generator is drawn from."""
    return [subject.device] if subject.device.type == "cuda" else []


def _cost(subject: Subject, sizes: Sequence[int], length: int) -> str:
    """The sentence that says how long it will take, by the time of a few tokens after rows of half the length."""
    half = torch.zeros(sizes[0], max(1, length // 2), dtype=torch.long, device=subject.device)
    few = min(FEW, length - half.shape[1])
    seconds = []
    with torch.random.fork_rng(devices=_devices(subject)):
        for more in (1, few):  # the first also reads the half
            start = time.perf_counter()
            _continued(subject, half, half.shape[1] + more)
            seconds.append(time.perf_counter() - start)
    each = max(seconds) if few == 1 else max(0.0, seconds[1] - seconds[0]) / (few - 1)
    texts = counted(sum(sizes), "text")
    return f"Writing {texts} of {length} tokens: about {duration(len(sizes) * length * each)}."


@torch.inference_mode()
def _continued(subject: Subject, tokens: Tensor, length: int) -> Tensor:
    """`tokens` [B, T] and what the model says after them [B, length]."""
    if not isinstance(subject.model, Decoder):
        return _generated(subject.model, tokens, length)
    while tokens.shape[1] < length:
        logits = subject.run(tokens, torch.ones_like(tokens, dtype=torch.bool))[:, -1]
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1)], 1)
    return tokens


def _generated(model: Any, tokens: Tensor, length: int) -> Tensor:
    """The same of a model of transformers, whose own settings for generation have no say: they sharpen and penalise."""
    from transformers import GenerationConfig  # seconds that a model of ours need not wait for

    kept = model.generation_config
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=length - tokens.shape[1])
    try:
        return torch.as_tensor(model.generate(tokens, attention_mask=torch.ones_like(tokens)))
    finally:
        model.generation_config = kept
