"""The unembedding: the table and the norm that read the residual stream after the last layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.gguf import is_gguf
from orchestrator.forensics.architecture.layout import Family
from orchestrator.forensics.weights.tensors import Tensors

WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # ends of transformers' class names


def head_name(tensors: Tensors, family: Family, stem: str, config: Mapping[str, Any], width: int) -> str | None:
    """Name of the tensor [V, d] that turns the stream into logits; the embedding's where the two are tied.

    `width`: the last layer's. None where the family has none or it is not known, where the file lacks it, and where it
    is not in the residual basis. Raises `UserError` where the final norm is of another width.
    """
    if not family.head:
        return None
    stored = next((name for name in _candidates(stem, family) if name in tensors), None)
    table = stem + family.embed
    name = stored or (table if table in tensors and _is_tied(tensors, config) else None)
    shape = () if name is None else tensors.shape(name)
    fits = len(shape) == 2 and (shape[1] >= width if name == table else shape[1] == width)
    norm = stem + family.final
    if fits and norm in tensors and tensors.shape(norm) != (width,):
        raise UserError(
            f"{norm} has shape {tensors.shape(norm)}, and the last layer is {width} wide: "
            "the files do not belong together."
        )
    return name if fits else None


def final_scale(tensors: Tensors, family: Family, stem: str) -> Tensor | None:
    """The scale γ [d] of the norm between the last layer and the head; None where there is none."""
    name = stem + family.final
    return tensors.read(name) + family.offset if family.final and name in tensors else None


def _candidates(stem: str, family: Family) -> Iterator[str]:
    """The head's name under the stem of the layers and under each module around it: the innermost first."""
    around = stem.split(".")[:-1]
    for depth in range(len(around), -1, -1):
        yield ".".join([*around[:depth], family.head])


def _is_tied(tensors: Tensors, config: Mapping[str, Any]) -> bool:
    """True where a model without a head of its own uses the embedding."""
    declared = config.get("tie_word_embeddings", config.get("tie_embeddings"))
    if declared is not None:
        return bool(declared)
    of_transformers = [str(name) for name in config.get("architectures") or ()]
    return is_gguf(tensors.metadata) or any(name.endswith(WITH_HEAD) for name in of_transformers)
