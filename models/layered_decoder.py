"""Our decoder with transformers' interface.

`save_pretrained` copies this file, and those that it imports relatively, beside the weights: what it saved loads with
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` where this project is not installed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .spec import DecoderSpec
from .transformer import Decoder, next_token_logits


class LayeredDecoderConfig(PreTrainedConfig):
    """Holds a `DecoderSpec` as plain JSON, and the sizes that transformers asks of every model."""

    model_type = "layered_decoder"

    spec: dict[str, Any] | None = None
    max_position_embeddings: int | None = None  # the length of the rows that it was trained on
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


LayeredDecoderConfig.register_for_auto_class()
LayeredDecoderForCausalLM.register_for_auto_class("AutoModelForCausalLM")
