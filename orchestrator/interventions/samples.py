"""A model's own samples, on which interventions are judged where no text is at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.transformer import Decoder
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
    with torch.random.fork_rng(devices=[subject.device] if subject.device.type == "cuda" else []):
        torch.manual_seed(SEED)
        groups = torch.randint(subject.vocabulary, (count, 1)).split(max(1, AT_ONCE // length))
        if left := [of for place, of in enumerate(groups) if (place, "rows") not in done]:
            announce(_cost(subject, left, length))
        rows = [row for place, of in enumerate(groups) for row in _drawn(subject, place, of, length, done)]
    return [Document(DOMAIN, tuple(row)) for row in rows]


def _drawn(
    subject: Subject, place: int, starts: Tensor, length: int, done: MutableMapping[Place, np.ndarray]
) -> list[list[int]]:
    """A group of texts in tokens [starts, length]; the next one is drawn as if this had been, where it is in `done`."""
    device = subject.device
    if (place, "rows") not in done:
        drawn = _continued(subject, starts.to(device), length)
        done[place, "state"] = np.array([_state(device).tolist()], float)
        done[place, "rows"] = drawn.cpu().numpy().astype(float)
    elif device.type == "cuda":
        torch.cuda.set_rng_state(_bytes(done[place, "state"]), device)
    else:
        torch.set_rng_state(_bytes(done[place, "state"]))
    rows: list[list[int]] = done[place, "rows"].astype(int).tolist()
    return rows


def _state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _bytes(values: np.ndarray) -> Tensor:
    return torch.tensor(values[0], dtype=torch.uint8)


def _cost(subject: Subject, groups: Sequence[Tensor], length: int) -> str:
    """The sentence that says how long it will take, by the time of a few tokens after rows of half the length."""
    half = groups[0].to(subject.device).expand(-1, max(1, length // 2))
    few = min(FEW, length - half.shape[1])
    seconds = []
    with torch.random.fork_rng(devices=[subject.device] if subject.device.type == "cuda" else []):
        for more in (1, few):  # the first also reads the half
            start = time.perf_counter()
            _continued(subject, half, half.shape[1] + more)
            seconds.append(time.perf_counter() - start)
    each = max(seconds) if few == 1 else max(0.0, seconds[1] - seconds[0]) / (few - 1)
    texts = counted(sum(map(len, groups)), "text")
    return f"Writing {texts} of {length} tokens: about {duration(len(groups) * length * each)}."


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
