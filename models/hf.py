"""Our decoder as a model of `transformers`, and back: a stock class where one computes the same.

Llama computes what a uniform pre-norm decoder does, Gemma 2 what a uniform one with sandwich norms does. Any other is a
`layered_decoder`, which importing this module registers with the auto classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from .layered_decoder import LayeredDecoderConfig, LayeredDecoderForCausalLM
from .spec import DecoderSpec, LayerShape
from .transformer import Decoder

AutoConfig.register(LayeredDecoderConfig.model_type, LayeredDecoderConfig)
AutoModelForCausalLM.register(LayeredDecoderConfig, LayeredDecoderForCausalLM)


def is_stock(spec: DecoderSpec) -> bool:
    """True where a stock class computes the same: equal layers, on all of the stream, whose heads divide the width."""
    first = spec.layers[0]
    return len(set(spec.layers)) == 1 and spec.embedding == spec.head is None and first.width % first.heads == 0


def to_huggingface(model: Decoder) -> PreTrainedModel:
    """A copy of `model` for transformers: stock `LlamaForCausalLM` or `Gemma2ForCausalLM`, else `layered_decoder`."""
    spec = model.spec
    state = dict(model.state_dict())
    copy: PreTrainedModel
    if not is_stock(spec):
        copy = LayeredDecoderForCausalLM(LayeredDecoderConfig(spec=spec.to_dict()))
    else:
        copy = LlamaForCausalLM(llama_config(spec)) if spec.norm == "pre" else Gemma2ForCausalLM(gemma_config(spec))
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        state = {name: tensor - norm_offset(spec, name) for name, tensor in state.items()}
    copy.load_state_dict(state)
    return copy.train(model.training)


def norm_offset(spec: DecoderSpec, name: str) -> float:
    """Our parameter less that of the stock class: Gemma 2 stores the scales of its norms as γ − 1."""
    return 1.0 if spec.norm == "sandwich" and name.endswith("norm.weight") else 0.0


def llama_config(spec: DecoderSpec) -> LlamaConfig:
    """The configuration of a Llama of this spec. It sets no special tokens, which the tokenizer has."""
    return LlamaConfig(**_shared(spec))


def gemma_config(spec: DecoderSpec) -> Gemma2Config:
    """The configuration of a Gemma 2 of this spec, with SiLU, full attention and no soft-capping."""
    shape = spec.layers[0]
    return Gemma2Config(
        **_shared(spec),
        pad_token_id=None,
        hidden_activation="silu",
        query_pre_attn_scalar=shape.head_dim,
        layer_types=["full_attention"] * len(spec.layers),
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    )


def _shared(spec: DecoderSpec) -> dict[str, Any]:
    shape = spec.layers[0]
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "tie_word_embeddings": spec.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }


FAMILIES = {"llama": "pre", "mistral": "pre", "gemma2": "sandwich"}  # model type → norm of the decoder that it may be


def spec_of(config: PreTrainedConfig) -> DecoderSpec:
    """The spec of the decoder that computes what a model of this configuration does.

    Raises `ValueError` for a configuration with something that no decoder of ours has.
    """
    if isinstance(config, LayeredDecoderConfig):
        return config.decoder_spec
    norm = FAMILIES.get(config.model_type)
    if norm is None:
        raise ValueError(f"model_type={config.model_type} is not one of {', '.join((*FAMILIES, 'layered_decoder'))}")
    for reason in _beyond(config):
        raise ValueError(reason)
    values: Any = config
    heads = values.num_attention_heads
    shape = LayerShape(
        width=values.hidden_size,
        heads=heads,
        kv_heads=values.num_key_value_heads or heads,
        head_dim=getattr(values, "head_dim", None) or values.hidden_size // heads,
        ffn=values.intermediate_size,
    )
    theta = values.rope_parameters["rope_theta"]
    return DecoderSpec(
        (shape,) * values.num_hidden_layers, values.vocab_size, norm, bool(values.tie_word_embeddings), float(theta),
        float(values.rms_norm_eps),
    )  # fmt: skip


# Key of a configuration → the values with which the decoder computes the same.
OURS: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish", None),
    "sliding_window": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (None, False),
}


def _beyond(config: Any) -> Iterator[str]:
    """The settings that no decoder of ours has, as `key=value is not …`."""
    for key, fitting in OURS.items():
        value = getattr(config, key, fitting[0])
        if value not in fitting and not (key == "sliding_window" and not _slides(config)):
            yield f"{key}={value}, where a decoder of ours has {fitting[0]}"
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"rope_parameters={rope}, where a decoder of ours has plain rotary positions"
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None and scalar != config.head_dim:
        yield f"query_pre_attn_scalar={scalar}, where a decoder of ours has the width of a head, {config.head_dim}"


def _slides(config: Any) -> bool:
    """True where some layer sees only a window."""
    kinds = getattr(config, "layer_types", None)
    return kinds is None or "sliding_attention" in kinds


def from_huggingface(model: PreTrainedModel) -> Decoder:
    """The decoder that computes what `model` does, with copies of its weights in their precision.

    Raises `ValueError` for a model that none of ours can be.
    """
    spec = spec_of(model.config)
    decoder = Decoder(spec).to(model.dtype)
    state: dict[str, Tensor] = dict(model.state_dict())
    if spec.tie_embeddings:
        state.pop("lm_head.weight", None)
    stock = not isinstance(model, LayeredDecoderForCausalLM)
    decoder.load_state_dict({name: tensor + stock * norm_offset(spec, name) for name, tensor in state.items()})
    return decoder.train(model.training)
