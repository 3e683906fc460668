"""The unembedding: the table and the norm that read the residual stream after the last layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from orchestrator.common.errors import UserError

if TYPE_CHECKING:
    from orchestrator.forensics.architecture.model import CheckpointModel

WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # ends of transformers' class names


def head_name(model: CheckpointModel) -> str | None:
    """Name of the tensor [V, d] that turns the stream into logits; the embedding's where the two are tied.

    None where the family has none or it is not known, where the file lacks it, and where it is not in the residual
    basis.
    """
    if not model.family.head:
        return None
    width = model.shape(len(model) - 1, "q")[1]
    stored = next((name for name in _candidates(model) if name in model.tensors), None)
    table = model.stem + model.family.embed
    name = stored or (table if model.embedding_shape is not None and _is_tied(model) else None)
    shape = () if name is None else model.tensors.shape(name)
    fits = len(shape) == 2 and (shape[1] >= width if name == table else shape[1] == width)
    norm = model.stem + model.family.final
    if fits and norm in model.tensors and model.tensors.shape(norm) != (width,):
        raise UserError(
            f"{norm} has shape {model.tensors.shape(norm)}, and the last layer is {width} wide: "
            "the files do not belong together."
        )
    return name if fits else None


def final_scale(model: CheckpointModel) -> Tensor | None:
    """The scale γ [d] of the norm between the last layer and the head; None where there is none."""
    name = model.stem + model.family.final
    if not model.family.final or name not in model.tensors:
        return None
    return model.tensors.read(name) + model.family.offset


def _candidates(model: CheckpointModel) -> Iterator[str]:
    """The head's name under the stem of the layers and under each module around it: the innermost first."""
    around = model.stem.split(".")[:-1]
    for depth in range(len(around), -1, -1):
        yield ".".join([*around[:depth], model.family.head])


def _is_tied(model: CheckpointModel) -> bool:
    """True where a model without a head of its own uses the embedding."""
    config = model.description.config
    declared = config.get("tie_word_embeddings", config.get("tie_embeddings"))
    if declared is not None:
        return bool(declared)
    of_transformers = [str(name) for name in config.get("architectures") or ()]
    return bool(model.tensors.metadata) or any(name.endswith(WITH_HEAD) for name in of_transformers)
