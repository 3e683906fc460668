"""Tokens that are run through a model, or backwards: what they tell of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.live import Live
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.entry import Value


def token_rows(tokens: torch.Tensor | Sequence[Sequence[int]] | None) -> torch.Tensor | None:
    """The tokens as a tensor, if any. Raises `UserError` for other things, and for rows of several lengths."""
    try:
        return None if tokens is None else torch.as_tensor(tokens)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"Tokens cannot be run ({error}): give rows of integers, all of one length.") from error


def of_tokens(
    source: Path | Live, model: CheckpointModel, forwards: torch.Tensor | None, backwards: torch.Tensor | None
) -> list[tuple[dict[str, Value], dict[str, float]]]:
    """Per layer, what running tokens through the model tells, and what running them backwards does; else nothing."""
    seen = [{}] * len(model) if forwards is None else probed(source, forwards)
    pulled = [{}] * len(model) if backwards is None else traced(source, model, backwards)
    return [(dict(of_layer), of_gradients) for of_layer, of_gradients in zip(seen, pulled, strict=True)]


def unprobed(source: Path | Live) -> str | None:
    """The sentence that refuses to run any tokens through a checkpoint; None where they may be given."""
    from orchestrator.forensics.measures.runner import why_not

    return why_not(source) if isinstance(source, Path) else None


def probed(source: Path | Live, tokens: torch.Tensor) -> list[dict[str, Value]]:
    """The probe's measures of every layer."""
    from orchestrator.forensics.measures.encoding import special_tokens
    from orchestrator.forensics.measures.probe import probe  # these imports take seconds
    from orchestrator.forensics.measures.runner import place, runnable, runnable_copy

    if isinstance(source, Live):
        return probe(runnable_copy(source.module, source.name), tokens)
    return probe(runnable(place(source)), tokens, special_tokens(place(source)))


def traced(source: Path | Live, model: CheckpointModel, tokens: torch.Tensor) -> list[dict[str, float]]:
    """Every layer's `gradient_alignment`, kind → cosine. Raises `UserError` for a model without a next-token loss."""
    from orchestrator.forensics.measures.gradients import gradient_alignment
    from orchestrator.forensics.measures.runner import place, runnable, runnable_copy

    if model.head_name is None:
        raise UserError(
            f"{model.directory} has no head that is known to read its stream, and so no next-token loss: "
            "read it without gradients."
        )
    if isinstance(source, Live):
        return gradient_alignment(model, runnable_copy(source.module, source.name, head=True), tokens)
    return gradient_alignment(model, runnable(place(source), head=True), tokens)
