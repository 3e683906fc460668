"""The subject of interventions: a model in memory, with the modules in which each layer writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from models.transformer import Decoder
from orchestrator.common.environment import free_memory
from orchestrator.common.errors import UserError
from orchestrator.common.formatting import size
from orchestrator.forensics.architecture.description import is_ours
from orchestrator.forensics.architecture.families import find
from orchestrator.forensics.architecture.layout import Family
from orchestrator.forensics.measures.probe import blocks, sizes
from orchestrator.forensics.measures.runner import configuration, runnable
from orchestrator.forensics.weights.tensors import open_tensors
from orchestrator.storage import checkpoint

# Ends of the names of classes that predict the next token.
WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
FORMS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # layer → length of the tuple it returns; 0: a tensor
FFN_NAMES = re.compile(r"mlp|ffn|feed_forward|moe|experts")  # of a layer's direct children, where no `down` is known


class TooLarge(UserError):
    """A model does not fit into memory."""


@dataclass(frozen=True)
class Branches:
    """The modules of one layer whose outputs are added to the residual stream; none for a branch it lacks."""

    attention: nn.Module | None
    ffn: Sequence[nn.Module]  # several where experts, shared or not, write beside it
    down: nn.Module | None  # reads the FFN's positions [..., f]; None where experts take their place


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode and fp32, whose layers can be replaced.

    `layers` hold one block each: it takes the residual stream [B, T, D] first and returns it. Causal models have
    logits; encoders have none, and their last hidden states are compared.
    """

    name: str
    model: nn.Module
    layers: nn.ModuleList
    branches: Sequence[Branches]
    is_causal: bool
    context: int  # most tokens of a row

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return sizes(self.model)[0]

    def width(self, layer: int) -> int | None:
        """Coordinates of the stream that the layer reads and writes; None for all."""
        width = getattr(self.layers[layer], "width", None)
        return width if isinstance(width, int) else None

    def run(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, T, V] of a causal model, last hidden states [B, T, D] of an encoder.

        `tokens` [B, T] may be padded on the right, where `mask` [B, T] is False: positions of a causal model do not see
        later ones, so that only an encoder needs the mask.
        """
        if isinstance(self.model, Decoder):
            return self.model(tokens)
        model: Any = self.model
        if self.is_causal:
            return model(input_ids=tokens, use_cache=False).logits
        return model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state


def load(source: Path, device: torch.device | None = None) -> Subject:
    """The model of a checkpoint: ours, a directory that `save_pretrained` wrote, or a GGUF file.

    Raises `UserError` for what cannot be run, and for a model that does not fit into memory.
    """
    if is_ours(source):
        _refuse_too_large(source, free_memory())
        config = checkpoint.config_of(source)
        decoder = checkpoint.load_decoder(source)
        return of_module(str(source), decoder.to(device), config.train.seq_len, device)
    described = configuration(source)
    _refuse_too_large(source, free_memory())
    model = runnable(source, head=is_causal(described))
    context = getattr(described.get_text_config(), "max_position_embeddings", None) or 2**20
    return of_module(str(source), model, context, device)


def of_module(name: str, model: nn.Module, context: int, device: torch.device | None = None) -> Subject:
    """The subject that a module is.

    Raises `UserError` where it holds no list of its layers, and where it does not run once through each of them.
    """
    model = model.to(device).eval()
    _, depth = sizes(model)
    layers = blocks(model, depth)
    if isinstance(model, Decoder):
        found, causal = find(f"norm={model.spec.norm}", {}), True
    else:
        config: Any = model.config
        text = config.get_text_config()
        found, causal = find(text.model_type, text.to_dict(), model.state_dict()), is_causal(config)
    family = None if found is None else found[1]
    subject = Subject(name, model, layers, [_branches(layer, family) for layer in layers], causal, context)
    _learn_forms(subject)
    return subject


def _learn_forms(subject: Subject) -> None:
    """Run two tokens, and keep in `FORMS` how each layer returns the stream."""
    seen: list[Any] = []
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=subject.device)
    with ExitStack() as hooks, torch.inference_mode():
        for layer in dict.fromkeys(subject.layers):
            hooks.callback(layer.register_forward_hook(lambda _, __, output: seen.append(output)).remove)
        subject.run(tokens, torch.ones_like(tokens, dtype=torch.bool))
    if len(seen) != len(subject.layers) or len(set(subject.layers)) != len(seen):
        raise UserError(
            f"{subject.name} runs {len(seen)} layers that are {len(set(subject.layers))} different ones: "
            "where layers share their weights, no single one can be changed."
        )
    for layer, output in zip(subject.layers, seen, strict=True):
        FORMS[layer] = len(output) if isinstance(output, tuple) else 0


def is_causal(config: Any) -> bool:
    """True for a configuration of transformers whose model predicts the next token.

    Its `architectures` say so; where it has none, the family does: an encoder has no head that reads the stream.
    """
    text = config.get_text_config()
    found = find(text.model_type, text.to_dict())
    reads_stream = found is None or bool(found[1].head)
    if declared := getattr(config, "architectures", None):
        is_encoder = found is not None and not reads_stream and not getattr(text, "is_decoder", True)
        return any(name.endswith(WITH_HEAD) for name in declared) and not is_encoder
    return reads_stream


def _branches(layer: nn.Module, family: Family | None) -> Branches:
    """The branches of a layer: by its family's names, else by those of its direct children."""
    attention, down = (None if family is None else _writer(layer, family, kind) for kind in ("o", "down"))
    held = {name: child for name, child in layer.named_children() if any(True for _ in child.parameters())}
    children = {name: child for name, child in held.items() if "norm" not in name}
    if attention is None:
        attention = next((child for name, child in children.items() if "att" in name), None)
    parts = [child for name, child in children.items() if FFN_NAMES.search(name)]
    if len(parts) > 1:  # experts beside an FFN: they write together, and no position is read by all tokens
        return Branches(attention, parts, None)
    return Branches(attention, [down] if down is not None else parts, down)


def _writer(layer: nn.Module, family: Family, kind: str) -> nn.Module | None:
    """The module of a layer that holds the matrix of this kind; None where it has none."""
    if kind not in family.kinds:
        return None
    name = family.part(kind).tensor.removesuffix(".weight")
    try:
        return layer.get_submodule(name)
    except AttributeError:
        return None


def _refuse_too_large(source: Path, free: int | None) -> None:
    """Raise `TooLarge` where the weights in fp32 are larger than `free` bytes, where that is known."""
    tensors = open_tensors(source)
    needed = 4 * sum(prod(tensors.shape(name)) for name in tensors.names)
    if free is not None and needed > free:
        raise TooLarge(
            f"{source} takes {size(needed)} in fp32, and {size(free)} of memory are free: use a machine with more."
        )
