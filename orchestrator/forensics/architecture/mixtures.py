"""The layouts of mixtures of experts and of hybrids: attention and FFN are read where a layer has them."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.forensics.architecture.common_parts import LLAMA, PARALLEL, POST, PRE, QKV, QKVO, UP_DOWN
from orchestrator.forensics.architecture.layout import Family, norms, plain, with_gates

_GATED_Q = tuple(replace(part, split=with_gates) if part.kinds == ("q",) else part for part in LLAMA)

# Within the layers of mixtures and hybrids: what is neither their attention nor a dense FFN.
_MIXTURE = "|".join(
    ("expert", "router", "mlp[.]gate[.]", "feed_forward[.]gate[.]", "_moe[.]", "shared_mlp", "linear_attn", "mamba",
     "conv[.]", "self_attn[.]g_proj")
)  # fmt: skip

MIXTURES = {
    "llama_moe": Family(
        LLAMA, PRE, aside=_MIXTURE,
        declared=("aria_text", "dots1", "ernie4_5_moe", "exaone_moe", "flint", "glm4_moe", "gpt_oss", "granitemoe",
                  "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "laguna",
                  "mellum", "mimo_v2_flash", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe",
                  "qwen3_vl_moe_text", "qwen3_omni_moe_text", "solar_open", "unlimited_ocr_text"),
    ),
    "qwen3_next": Family(
        _GATED_Q, PRE, aside=_MIXTURE, offset=1.0,
        declared=("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
    ),
    "cohere2_moe": Family(LLAMA, PARALLEL, aside=_MIXTURE),
    "flex_olmo": Family(LLAMA, POST, aside=_MIXTURE),
    "afmoe": Family(
        LLAMA, norms("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"),
        aside=_MIXTURE + "|self_attn[.]gate_proj",
    ),
    "kolibri1": Family(
        LLAMA, norms("input_layernorm", "post_attn_norm", "post_attention_layernorm", "post_ffn_norm"), aside=_MIXTURE
    ),
    "jamba": Family(
        QKVO + plain(gate="feed_forward.gate_proj", up="feed_forward.up_proj", down="feed_forward.down_proj"),
        norms("input_layernorm", None, "pre_ff_layernorm"), declared=("jamba", "bamba"), aside=_MIXTURE,
        final="final_layernorm.weight",
    ),
    "deepseek": Family(
        plain(gate="mlp.gate_proj") + UP_DOWN, norms(None, None, "post_attention_layernorm"),
        declared=("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2", "minicpm3",
                  "youtu"),
        aside=_MIXTURE + "|self_attn|input_layernorm",
    ),
    "nemotron_h": Family(
        plain(q="mixer.q_proj", k="mixer.k_proj", v="mixer.v_proj", o="mixer.o_proj", up="mixer.up_proj",
              down="mixer.down_proj"),
        norms("norm", None, "norm"), aside="mixer", single=True, final="norm_f.weight",
    ),
    "lfm2": Family(
        QKV + plain(o="self_attn.out_proj", gate="feed_forward.w1", up="feed_forward.w3", down="feed_forward.w2"),
        norms("operator_norm", None, "ffn_norm"), declared=("lfm2", "lfm2_moe"), aside=_MIXTURE,
        final="embedding_norm.weight",
    ),
    "lfm3": Family(
        QKVO + plain(gate="feed_forward.w1", up="feed_forward.w3", down="feed_forward.w2"),
        norms("operator_norm", "post_operator_norm", "ffn_norm", "post_ffn_norm"), declared=("lfm3", "lfm3_text"),
        aside=_MIXTURE + "|self_attn[.]gate_proj", final="embedding_norm.weight",
    ),
}  # fmt: skip
MIXTURES = {name: replace(family, mixed=True) for name, family in MIXTURES.items()}
