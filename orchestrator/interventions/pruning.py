"""Pruning: a model without some of its layers."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from models.hf import to_huggingface
from models.layered_decoder import LayeredDecoderConfig
from models.transformer import Decoder
from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted
from orchestrator.common.shapes import one_line
from orchestrator.interventions.edits import passing
from orchestrator.interventions.passes import replaced
from orchestrator.interventions.subject import Subject

RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def layers_of(text: str, depth: int) -> list[int]:
    """The layers that `text` names, such as 7 and 12 to 14 by `7,12-14`; none for an empty one.

    Raises `UserError` for another syntax, a layer that a model of `depth` layers has not, and where none would be left.
    """
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        match = RANGE.fullmatch(part.strip())
        if match is None:
            raise UserError(f"--drop {text} names no layers: write numbers and ranges, as in --drop 7,12-14.")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise UserError(f"--drop {part.strip()} runs backwards: write the lower number first, {last}-{first}.")
        if last >= depth:
            raise UserError(f"--drop {part.strip()} does not exist: the model has layers 0 to {depth - 1}.")
        found |= set(range(first, last + 1))
    if len(found) == depth:
        raise UserError(f"--drop {text} leaves none of the {counted(depth, 'layer')}: keep one at least.")
    return sorted(found)


def deleted(subject: Subject, layers: Collection[int]) -> AbstractContextManager[None]:
    """Inside the block the subject runs without these layers."""
    return replaced([subject.layers[layer] for layer in layers], [passing] * len(layers))


def pruned(subject: Subject, layers: Collection[int]) -> PreTrainedModel:
    """The subject's model without these layers, as a model of transformers, on the CPU.

    The subject is used up: its model may become the result, whose layers count themselves wrongly until it is saved
    and loaded. Raises `UserError` for a family whose configuration cannot say so.
    """
    depth = len(subject.layers)
    model = subject.model.cpu()
    for layer in sorted(layers, reverse=True):
        del subject.layers[layer]  # those after it are renumbered
    if isinstance(model, Decoder):
        smaller = Decoder(model.spec.without(layers))
        smaller.load_state_dict(model.state_dict())
        return to_huggingface(smaller.eval())
    assert isinstance(model, PreTrainedModel)
    if layers:
        shorten(model.config, layers, depth)
        try:
            model.config.validate()
        except StrictDataclassError as error:
            raise cannot_say(subject.name, model.config, error) from error
    return model


def shorten(config: PreTrainedConfig, layers: Collection[int], depth: int) -> None:
    """Make a configuration of `depth` layers one without these; its lists of an entry for each layer lose theirs."""
    if isinstance(config, LayeredDecoderConfig):
        config.spec = config.decoder_spec.without(layers).to_dict()
        return
    text: Any = config.get_text_config()
    lists = {
        key: [entry for layer, entry in enumerate(value) if layer not in layers]
        for key, value in vars(text).items()
        if isinstance(value, list | tuple) and len(value) == depth and not key.endswith("token_id")
    }
    text.num_hidden_layers = depth - len(layers)
    for key, value in lists.items():
        setattr(text, key, value)


def cannot_say(name: str, config: PreTrainedConfig, reason: object) -> UserError:
    """The error for a family whose configuration cannot describe the model without the layers, for this reason."""
    return UserError(
        f"{name} cannot be exported without these layers, since the config.json of a {config.model_type} cannot "
        f"describe the others ({one_line(reason)}): drop whole periods of a family whose layers alternate, or those "
        "after the first few."
    )


def in_precision(model: Any, dtype: torch.dtype | None) -> PreTrainedModel:
    """A model of transformers, in `dtype` where that changes no weight."""
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if dtype is None or not all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in tensors):
        return model
    return model.to(dtype)


def mergekit(source: str, layers: Collection[int], depth: int, dtype: str) -> dict[str, Any]:
    """The configuration by which mergekit makes the same model: `layer_range`s end before their second number."""
    kept = [layer for layer in range(depth) if layer not in layers]
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(kept), lambda pair: pair[1] - pair[0])]
    return {
        "slices": [{"sources": [{"model": source, "layer_range": [run[0], run[-1] + 1]}]} for run in runs],
        "merge_method": "passthrough",
        "dtype": dtype,
    }
