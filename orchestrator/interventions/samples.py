"""A model's own samples, on which interventions are judged where no text is at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.transformer import Decoder
from orchestrator.common.errors import UserError
from orchestrator.interventions.documents import AT_ONCE, LENGTH, Document
from orchestrator.interventions.subject import Subject

DOMAIN = "own samples"
SEED = 0  # a part of the definition: the same samples whenever a model is judged


def sampled(subject: Subject, count: int, length: int | None) -> list[Document]:
    """`count` documents of `length` tokens (128), drawn from the model at temperature 1 (SCIENCE §9).

    Raises `UserError` for an encoder, which writes nothing, and for a length that the model cannot write.
    """
    if not subject.is_causal:
        raise UserError(f"{subject.name} is an encoder and writes no text: give one with --data in place of --own.")
    length = min(LENGTH, subject.context) if length is None else length
    if length > subject.context:
        raise UserError(f"--length {length} is more than the {subject.context} tokens of {subject.name}: lower it.")
    at_once = max(1, AT_ONCE // length)
    with torch.random.fork_rng(devices=[subject.device] if subject.device.type == "cuda" else []):
        torch.manual_seed(SEED)
        starts = torch.randint(subject.vocabulary, (count, 1))
        rows = [row for some in starts.split(at_once) for row in _continued(subject, some.to(subject.device), length)]
    return [Document(DOMAIN, tuple(row.tolist())) for row in rows]


@torch.inference_mode()
def _continued(subject: Subject, tokens: Tensor, length: int) -> Tensor:
    """`tokens` [B, 1] and what the model says after them [B, length]."""
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
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=length - 1)
    try:
        return torch.as_tensor(model.generate(tokens, attention_mask=torch.ones_like(tokens)))
    finally:
        model.generation_config = kept
