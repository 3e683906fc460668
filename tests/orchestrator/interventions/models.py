"""Tiny models of several families, with random weights, and copies of them that are put together otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn

from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder
from orchestrator.interventions.subject import Subject, of_module

LAYERS = 4
SIZES = {
    "vocab_size": 41, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "max_position_embeddings": 40,
}  # fmt: skip
WIDTHS = (8, 16, 12, 16)


def ours(norm: str, widths: Sequence[int] = WIDTHS) -> Decoder:
    shapes = tuple(LayerShape(width=w, heads=w // 4, kv_heads=w // 4, head_dim=4, ffn=2 * w) for w in widths)
    return Decoder(DecoderSpec(shapes, vocab_size=SIZES["vocab_size"], norm=norm))


def gemma2() -> nn.Module:
    """Half of the layers see two positions back."""
    return transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=8, sliding_window=3)
    )


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "ours, pre": lambda: ours("pre"),
    "ours, sandwich": lambda: ours("sandwich"),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=41, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=40)
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES)),
    "gemma2": gemma2,
    "bloom": lambda: transformers.BloomForCausalLM(  # its layers return a tuple
        transformers.BloomConfig(vocab_size=41, hidden_size=16, n_layer=LAYERS, n_head=2)
    ),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False),
}
# Of each family: the modules of a layer that write, and the names of its layers.
WRITERS = {
    "ours, pre": ("self_attn.o_proj", "mlp.down_proj"),
    "ours, sandwich": ("self_attn.o_proj", "mlp.down_proj"),
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "bert": ("attention.output.dense", "output.dense"),
}
STACK = re.compile(r"^(.*?(?:layers|h|encoder\.layer)\.)(\d+)(\..*)$")


def model_of(family: str) -> nn.Module:
    """The family's model in float64, every parameter drawn so that no branch is small."""
    torch.manual_seed(0)
    model = FAMILIES[family]().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "bias" not in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
            else:
                scale = 0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape) * scale)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


def subject_of(family: str, model: nn.Module | None = None) -> Subject:
    return of_module(family, model_of(family) if model is None else model, 40)


def rebuilt(family: str, order: Sequence[int]) -> Subject:
    """A new model of those layers in that order, built from its configuration and given their weights."""
    model = model_of(family)
    if isinstance(model, Decoder):
        smaller: nn.Module = Decoder(replace(model.spec, layers=tuple(model.spec.layers[i] for i in order)))
    else:
        config: Any = deepcopy(model.config)
        config.num_hidden_layers = len(order)
        if getattr(config, "layer_types", None):
            config.layer_types = [model.config.layer_types[i] for i in order]  # type: ignore[union-attr,index]
        extra = {"add_pooling_layer": False} if family == "bert" else {}
        smaller = type(model)(config, **extra)
    weights = model.state_dict()
    chosen = {name: weights[_from(name, order)] for name in smaller.state_dict()}
    smaller.double().load_state_dict(chosen)
    return subject_of(family, smaller.eval())


def _from(name: str, order: Sequence[int]) -> str:
    """The name in the whole model of what a rebuilt one calls `name`."""
    match = STACK.match(name)
    return name if match is None else f"{match[1]}{order[int(match[2])]}{match[3]}"
