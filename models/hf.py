"""Our decoder as a `transformers` model: stock Llama where that computes the same.

`AutoModelForCausalLM.from_pretrained(folder)` reads what `to_huggingface(decoder).save_pretrained(folder)` wrote. Where
stock Llama does not fit, the model type is `layered_decoder`, which `import models.hf` registers: import it first.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from models.spec import DecoderSpec
from models.transformer import Decoder, next_token_logits


class LayeredDecoderConfig(PreTrainedConfig):
    """Holds a `DecoderSpec` as plain JSON, and the sizes that transformers asks of every model."""

    model_type = "layered_decoder"

    spec: dict[str, Any] | None = None
    use_cache: bool = False

    @property
    def decoder_spec(self) -> DecoderSpec:
        """The spec. Raises `ValueError` where the configuration has none."""
        return DecoderSpec.from_dict(self.spec or {})

    @property
    def vocab_size(self) -> int:
        return self.decoder_spec.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.decoder_spec.width

    @property
    def num_hidden_layers(self) -> int:
        return len(self.decoder_spec.layers)


class LayeredDecoderForCausalLM(PreTrainedModel, GenerationMixin):
    """`Decoder` with transformers' interface and the same tensor names. It keeps no key/value cache."""

    config_class = LayeredDecoderConfig
    base_model_prefix = "model"

    def __init__(self, config: LayeredDecoderConfig) -> None:
        super().__init__(config)
        decoder = Decoder(config.decoder_spec)
        self.model = decoder.model
        if not decoder.spec.tie_embeddings:
            self.lm_head = decoder.lm_head
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **unused: Any
    ) -> CausalLMOutput:
        """Logits [B, T, V] and, with `labels` (−100 is skipped), the mean next-token loss in nats.

        Raises `ValueError` where `attention_mask` [B, T] has padding before text.
        """
        if attention_mask is not None and (attention_mask.diff(dim=1) > 0).any():
            raise ValueError(
                "attention_mask hides a token before a visible one, which this model cannot do: "
                "pad on the right, and generate from rows of equal length."
            )
        head = self.model.embed_tokens if self.model.spec.tie_embeddings else self.lm_head
        logits = next_token_logits(self.model, head, input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The inputs of one step, which recomputes the whole prefix."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}


AutoConfig.register(LayeredDecoderConfig.model_type, LayeredDecoderConfig)
AutoModelForCausalLM.register(LayeredDecoderConfig, LayeredDecoderForCausalLM)


def fits_llama(spec: DecoderSpec) -> bool:
    """True where stock Llama computes the same: pre-norm, equal layers, and heads that divide the width."""
    first = spec.layers[0]
    return spec.norm == "pre" and len(set(spec.layers)) == 1 and first.width % first.heads == 0


def to_huggingface(model: Decoder) -> PreTrainedModel:
    """A copy of `model` for transformers: stock `LlamaForCausalLM` where it fits, else `layered_decoder`."""
    spec = model.spec
    state = dict(model.state_dict())
    copy: PreTrainedModel
    if fits_llama(spec):
        copy = LlamaForCausalLM(llama_config(spec))
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    else:
        copy = LayeredDecoderForCausalLM(LayeredDecoderConfig(spec=spec.to_dict()))
    copy.load_state_dict(state)
    return copy.train(model.training)


def llama_config(spec: DecoderSpec) -> LlamaConfig:
    """The configuration of a Llama of this spec. It sets no special tokens, which the tokenizer has."""
    shape = spec.layers[0]
    return LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=len(spec.layers),
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=spec.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )
