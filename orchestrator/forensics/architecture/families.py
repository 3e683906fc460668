"""The layouts of known families: the names of their matrices and norms, one entry of `FAMILIES` per family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.forensics.architecture.layout import (
    Family,
    Part,
    fused,
    grouped,
    halves,
    norms,
    plain,
    quarters,
    stacked,
    with_gates,
)


def _megatron(attention: str) -> tuple[Part, ...]:
    """The parts of a descendant of Megatron, whose attention module has the name `attention`."""
    others = plain(o=f"{attention}.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h")
    return fused(f"{attention}.query_key_value", grouped) + others


_QKV = plain(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj")
_ATTENTION = _QKV + plain(o="self_attn.o_proj")
_UP_DOWN = plain(up="mlp.up_proj", down="mlp.down_proj")
_LLAMA = _ATTENTION + plain(gate="mlp.gate_proj") + _UP_DOWN
_GATED_Q = tuple(replace(part, split=with_gates) if part.kinds == ("q",) else part for part in _LLAMA)
_FC = plain(up="mlp.fc1", down="mlp.fc2")
_GATE_UP_DOWN = fused("mlp.gate_up_proj", halves, ("gate", "up")) + plain(down="mlp.down_proj")
_CONV1D = tuple(
    replace(part, transposed=True)
    for part in (*fused("attn.c_attn", stacked), *plain(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"))
)

# Within the layers of mixtures and hybrids: what is neither their attention nor a dense FFN.
_MIXTURE = "|".join(
    ("expert", "router", "mlp[.]gate[.]", "feed_forward[.]gate[.]", "_moe[.]", "shared_mlp", "linear_attn", "mamba",
     "conv[.]", "self_attn[.]g_proj")
)  # fmt: skip

_PRE = norms("input_layernorm", None, "post_attention_layernorm")
_POST = norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_PARALLEL = norms("input_layernorm", None, "input_layernorm")
_SANDWICH = norms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
_LN = norms("ln_1", None, "ln_2")
_GPT: dict[str, Any] = {"layer": "h.{}.", "embed": "wte.weight", "final": "ln_f.weight"}
_ENCODER: dict[str, Any] = {"final": "", "head": ""}  # whose head, if any, reads a further transform
_BLOOM: dict[str, Any] = _GPT | {"parts": _megatron("self_attention"), "embed": "word_embeddings.weight"}
_OPT: dict[str, Any] = {"parts": _QKV + plain(o="self_attn.out_proj", up="fc1", down="fc2")}
_T5 = plain(
    q="layer.0.SelfAttention.q", k="layer.0.SelfAttention.k", v="layer.0.SelfAttention.v",
    o="layer.0.SelfAttention.o", down="layer.1.DenseReluDense.wo",
)  # fmt: skip
_T5_REST: dict[str, Any] = {
    "norms": norms("layer.0.layer_norm", None, "layer.1.layer_norm"), "layer": "block.{}.",
    "aside": "relative_attention_bias", **_ENCODER,
}  # fmt: skip
_BERT: dict[str, Any] = {
    "parts": plain(
        q="attention.self.query", k="attention.self.key", v="attention.self.value", o="attention.output.dense",
        up="intermediate.dense", down="output.dense",
    ),
    "norms": norms(None, "attention.output.LayerNorm", None, "output.LayerNorm"),
    "layer": "encoder.layer.{}.",
    "embed": "embeddings.word_embeddings.weight",
    **_ENCODER,
}  # fmt: skip

# The first entry whose `declared`, `when` and tensors match is taken: special families come before general ones.
FAMILIES = {
    "llama": Family(
        _LLAMA, _PRE,
        declared=("norm=pre", "llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "granite", "smollm3",
                  "seed_oss", "helium", "ernie4_5", "internlm3", "cwm", "granite_swa", "hunyuan_v1_dense",
                  "iquestcoder", "eurobert", "esmc", "ultrabert", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl",
                  "qwen2_5_vl_text", "qwen2_5_omni_text", "qwen3_vl_text", "hunyuan_vl_text", "paddleocr_vl_text"),
    ),
    # Mixtures of experts and hybrids: attention and FFN are read where a layer has them.
    "llama_moe": Family(
        _LLAMA, _PRE, aside=_MIXTURE,
        declared=("aria_text", "dots1", "ernie4_5_moe", "exaone_moe", "flint", "glm4_moe", "gpt_oss", "granitemoe",
                  "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "laguna",
                  "mellum", "mimo_v2_flash", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe",
                  "qwen3_vl_moe_text", "solar_open"),
    ),
    "qwen3_next": Family(
        _GATED_Q, _PRE, aside=_MIXTURE, offset=1.0,
        declared=("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
    ),
    "cohere2_moe": Family(_LLAMA, _PARALLEL, aside=_MIXTURE),
    "flex_olmo": Family(_LLAMA, _POST, aside=_MIXTURE),
    "afmoe": Family(
        _LLAMA, norms("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"),
        aside=_MIXTURE + "|self_attn[.]gate_proj",
    ),
    "kolibri1": Family(
        _LLAMA, norms("input_layernorm", "post_attn_norm", "post_attention_layernorm", "post_ffn_norm"), aside=_MIXTURE
    ),
    "jamba": Family(
        _ATTENTION + plain(gate="feed_forward.gate_proj", up="feed_forward.up_proj", down="feed_forward.down_proj"),
        norms("input_layernorm", None, "pre_ff_layernorm"), declared=("jamba", "bamba"), aside=_MIXTURE,
        final="final_layernorm.weight",
    ),
    "deepseek": Family(
        plain(gate="mlp.gate_proj") + _UP_DOWN, norms(None, None, "post_attention_layernorm"),
        declared=("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2", "minicpm3",
                  "youtu"),
        aside=_MIXTURE + "|self_attn|input_layernorm",
    ),
    "nemotron_h": Family(
        plain(q="mixer.q_proj", k="mixer.k_proj", v="mixer.v_proj", o="mixer.o_proj", up="mixer.up_proj",
              down="mixer.down_proj"),
        norms("norm", None, "norm"), aside="mixer", final="norm_f.weight",
    ),
    "doge": Family(_LLAMA, _PRE, aside="dt_proj"),
    "beam": Family(_LLAMA, _SANDWICH, aside="self_attn[.]gate_proj"),
    "bitnet": Family(_LLAMA, _PRE, aside=r"(attn|ffn)_sub_norm"),
    "hyperclovax": Family(
        _LLAMA, norms("input_layernorm", "post_norm1", "post_attention_layernorm", "post_norm2"),
        optional=("post_attention", "post_ffn"),
    ),
    "gemma4": Family(_LLAMA, _SANDWICH, declared=("gemma4_text", "gemma4_unified_text"), aside="per_layer_"),
    "lfm2": Family(
        _QKV + plain(o="self_attn.out_proj", gate="feed_forward.w1", up="feed_forward.w3", down="feed_forward.w2"),
        norms("operator_norm", None, "ffn_norm"), declared=("lfm2", "lfm2_moe"), aside=_MIXTURE,
        final="embedding_norm.weight",
    ),
    "lfm3": Family(
        _ATTENTION + plain(gate="feed_forward.w1", up="feed_forward.w3", down="feed_forward.w2"),
        norms("operator_norm", "post_operator_norm", "ffn_norm", "post_ffn_norm"), declared=("lfm3", "lfm3_text"),
        aside=_MIXTURE + "|self_attn[.]gate_proj", final="embedding_norm.weight",
    ),
    "llama_sandwich": Family(_LLAMA, _SANDWICH, declared=("norm=sandwich",)),
    "gemma": Family(_LLAMA, _PRE, offset=1.0),
    "gemma2": Family(_LLAMA, _SANDWICH, offset=1.0),
    "gemma3": Family(_LLAMA, _SANDWICH, declared=("gemma3_text", "gemma3"), offset=1.0),
    "vaultgemma": Family(_LLAMA, norms("input_layernorm", None, "pre_feedforward_layernorm"), offset=1.0),
    "olmo": Family(_LLAMA, {}),
    "olmo2": Family(_LLAMA, _POST, declared=("olmo2", "olmo3", "exaone4")),
    "cohere": Family(_LLAMA, _PARALLEL, declared=("cohere", "cohere2")),
    "stablelm_parallel": Family(_LLAMA, _PARALLEL, declared=("stablelm",), when={"use_parallel_residual": True}),
    "stablelm": Family(_LLAMA, _PRE),
    "nemotron": Family(_ATTENTION + _UP_DOWN, _PRE, offset=1.0, starts_at_0=False),
    "arcee": Family(_ATTENTION + _UP_DOWN, _PRE, declared=("arcee", "jais2")),
    "nanochat": Family(_ATTENTION + _FC, {}),
    "apertus": Family(_ATTENTION + _UP_DOWN, norms("attention_layernorm", None, "feedforward_layernorm")),
    "starcoder2": Family(_ATTENTION + plain(up="mlp.c_fc", down="mlp.c_proj"), _PRE),
    "phi": Family(_QKV + plain(o="self_attn.dense") + _FC, _PARALLEL, final="final_layernorm.weight"),
    "moshi": Family(
        plain(q="self_attn.q_proj.linear", k="self_attn.k_proj.linear", v="self_attn.v_proj.linear",
              o="self_attn.o_proj.linear", down="mlp.fc2") + fused("mlp.fc1", halves, ("gate", "up")),
        _PRE,
    ),
    "phi3": Family(fused("self_attn.qkv_proj", stacked) + plain(o="self_attn.o_proj") + _GATE_UP_DOWN, _PRE),
    "glm": Family(_ATTENTION + _GATE_UP_DOWN, _PRE),
    "glm4": Family(
        _ATTENTION + _GATE_UP_DOWN,
        norms("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ),
    "persimmon": Family(_megatron("self_attn"), _PRE, final="final_layernorm.weight"),
    "gpt_neox": Family(
        _megatron("attention"), _PRE, declared=("gpt_neox", "gpt_neox_japanese"), embed="embed_in.weight",
        final="final_layer_norm.weight", head="embed_out.weight",
    ),
    "gpt1": Family(
        _CONV1D, norms(None, "ln_1", None, "ln_2"), declared=("openai-gpt",), layer="h.{}.",
        embed="tokens_embed.weight", final="",
    ),
    "gpt2": Family(_CONV1D, _LN, **_GPT),
    "gpt_bigcode": Family(
        fused("attn.c_attn", grouped) + plain(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"), _LN, **_GPT,
    ),
    "gptj": Family(
        plain(q="attn.q_proj", k="attn.k_proj", v="attn.v_proj", o="attn.out_proj", up="mlp.fc_in", down="mlp.fc_out"),
        norms("ln_1", None, "ln_1"), **_GPT,
    ),
    "codegen": Family(
        fused("attn.qkv_proj", quarters) + plain(o="attn.out_proj", up="mlp.fc_in", down="mlp.fc_out"),
        norms("ln_1", None, "ln_1"), **_GPT,
    ),
    "ctrl": Family(
        plain(q="multi_head_attention.Wq", k="multi_head_attention.Wk", v="multi_head_attention.Wv",
              o="multi_head_attention.dense", up="ffn.0", down="ffn.2"),
        norms("layernorm1", None, "layernorm2"), layer="h.{}.", embed="w.weight", final="layernorm.weight",
    ),
    "cpmant": Family(
        plain(q="self_att.self_attention.project_q", k="self_att.self_attention.project_k",
              v="self_att.self_attention.project_v", o="self_att.self_attention.attention_out",
              gate="ffn.ffn.w_in.w_0", up="ffn.ffn.w_in.w_1", down="ffn.ffn.w_out"),
        norms("self_att.layernorm_before_attention", None, "ffn.layernorm_before_ffn"), layer="encoder.layers.{}.",
        embed="input_embedding.weight", final="encoder.output_layernorm.weight",
    ),
    "gpt_neo": Family(
        plain(q="attn.attention.q_proj", k="attn.attention.k_proj", v="attn.attention.v_proj",
               o="attn.attention.out_proj", up="mlp.c_fc", down="mlp.c_proj"),
        _LN, **_GPT,
    ),
    "mpt": Family(
        fused("attn.Wqkv", stacked) + plain(o="attn.out_proj", up="ffn.up_proj", down="ffn.down_proj"),
        norms("norm_1", None, "norm_2"), layer="blocks.{}.", embed="wte.weight", final="norm_f.weight",
    ),
    "bloom": Family(norms=_PRE, **_BLOOM),
    "falcon_one_norm": Family(
        norms=_PARALLEL, declared=("falcon",), when={"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
        **_BLOOM,
    ),
    "falcon_two_norms": Family(
        norms=norms("ln_attn", None, "ln_mlp"), declared=("falcon",), when={"new_decoder_architecture": True}, **_BLOOM
    ),
    "falcon_sequential": Family(norms=_PRE, declared=("falcon",), when={"parallel_attn": False}, **_BLOOM),
    "falcon": Family(norms=_PARALLEL, **_BLOOM),
    "opt_post": Family(
        declared=("opt",), norms=norms(None, "self_attn_layer_norm", None, "final_layer_norm"),
        when={"do_layer_norm_before": False}, final="", **_OPT,
    ),
    "opt": Family(
        norms=norms("self_attn_layer_norm", None, "final_layer_norm"), final="final_layer_norm.weight", **_OPT
    ),
    "xglm": Family(
        declared=("xglm", "biogpt"), norms=norms("self_attn_layer_norm", None, "final_layer_norm"),
        final="layer_norm.weight", **_OPT,
    ),
    "internlm2": Family(
        fused("attention.wqkv", grouped)
        + plain(o="attention.wo", gate="feed_forward.w1", up="feed_forward.w3", down="feed_forward.w2"),
        norms("attention_norm", None, "ffn_norm"), embed="tok_embeddings.weight", head="output.weight",
    ),
    "baichuan": Family(
        fused("self_attn.W_pack", stacked) + plain(o="self_attn.o_proj", gate="mlp.gate_proj") + _UP_DOWN, _PRE
    ),
    "qwen": Family(
        fused("attn.c_attn", stacked) + plain(o="attn.c_proj", up="mlp.w1", gate="mlp.w2", down="mlp.c_proj"),
        _LN, **_GPT,
    ),
    "chatglm2": Family(
        fused("self_attention.query_key_value", stacked) + plain(o="self_attention.dense", down="mlp.dense_4h_to_h")
        + fused("mlp.dense_h_to_4h", halves, ("gate", "up")),
        _PRE, declared=("chatglm",), when={"multi_query_attention": True}, layer="encoder.layers.{}.",
        embed="embedding.word_embeddings.weight", final="encoder.final_layernorm.weight", head="output_layer.weight",
    ),
    "bart": Family(
        norms=norms(None, "self_attn_layer_norm", None, "final_layer_norm"),
        declared=("bart", "blenderbot-small", "marian", "mvp", "plbart"), **_OPT, **_ENCODER,
    ),
    "mbart": Family(
        norms=norms("self_attn_layer_norm", None, "final_layer_norm"),
        declared=("mbart", "blenderbot", "pegasus", "m2m_100", "whisper"), **_OPT, **_ENCODER,
    ),
    "t5_gated": Family(
        _T5 + plain(gate="layer.1.DenseReluDense.wi_0", up="layer.1.DenseReluDense.wi_1"),
        declared=("t5", "mt5", "umt5"), **_T5_REST,
    ),
    "t5": Family(_T5 + plain(up="layer.1.DenseReluDense.wi"), declared=("t5", "mt5"), **_T5_REST),
    "bert": Family(**_BERT),
    "roberta": Family(
        declared=("roberta", "xlm-roberta", "camembert", "electra", "bert-generation", "big_bird", "data2vec-text",
                  "ernie", "layoutlm", "mra", "rembert", "roc_bert", "roformer", "tapas", "yoso"),
        **_BERT
    ),
    "roberta_prelayernorm": Family(
        declared=("roberta-prelayernorm",),
        **_BERT | {"norms": norms("attention.LayerNorm", None, "intermediate.LayerNorm")},
    ),
    "xlm_roberta_xl": Family(
        declared=("xlm-roberta-xl",), **_BERT | {"norms": norms("attention.self_attn_layer_norm", None, "LayerNorm")}
    ),
    "esm": Family(**_BERT | {"norms": norms("attention.LayerNorm", None, "LayerNorm")}),
    "megatron_bert": Family(declared=("megatron-bert",), **_BERT | {"norms": norms("attention.ln", None, "ln")}),
    "nystromformer": Family(**_BERT, aside="self[.]conv"),
    "longformer": Family(**_BERT, aside=r"(query|key|value)_global"),
    "luke": Family(**_BERT, aside="e2e_query|e2w_query|w2e_query"),
    "xmod": Family(**_BERT, aside="adapter_modules"),
    "ibert": Family(**_BERT, aside="_act(ivation)?[.]"),
    "deberta": Family(**_BERT | {
        "parts": fused("attention.self.in_proj", grouped)
        + plain(o="attention.output.dense", up="intermediate.dense", down="output.dense"),
    }),
    "albert": Family(
        plain(q="attention.query", k="attention.key", v="attention.value", o="attention.dense", up="ffn",
              down="ffn_output"),
        norms(None, "attention.LayerNorm", None, "full_layer_layer_norm"),
        layer="encoder.albert_layer_groups.{}.albert_layers.0.", embed="embeddings.word_embeddings.weight",
        stored="num_hidden_groups", **_ENCODER,
    ),
    "nomic_bert": Family(
        fused("attn.Wqkv", stacked) + plain(o="attn.out_proj", up="mlp.fc11", gate="mlp.fc12", down="mlp.fc2"),
        norms(None, "norm1", None, "norm2"), layer="encoder.layers.{}.",
        embed="embeddings.word_embeddings.weight", **_ENCODER,
    ),
    "jina_embeddings_v3": Family(
        fused("mixer.Wqkv", stacked) + plain(o="mixer.out_proj") + _FC,
        norms(None, "norm1", None, "norm2"), layer="encoder.layers.{}.",
        embed="embeddings.word_embeddings.weight", **_ENCODER,
    ),
    "gte": Family(
        fused("attention.qkv_proj", stacked) + plain(o="attention.o_proj", down="mlp.down_proj")
        + fused("mlp.up_gate_proj", halves, ("up", "gate")),
        norms(None, "attn_ln", None, "mlp_ln"), layer="encoder.layer.{}.",
        embed="embeddings.word_embeddings.weight", **_ENCODER,
    ),
    "mpnet": Family(**_BERT | {
        "parts": plain(q="attention.attn.q", k="attention.attn.k", v="attention.attn.v", o="attention.attn.o",
                        up="intermediate.dense", down="output.dense"),
        "norms": norms(None, "attention.LayerNorm", None, "output.LayerNorm"),
    }),
    "deberta_v2": Family(declared=("deberta-v2",), **_BERT | {
        "parts": plain(q="attention.self.query_proj", k="attention.self.key_proj", v="attention.self.value_proj",
                        o="attention.output.dense", up="intermediate.dense", down="output.dense"),
    }),
    "distilbert": Family(
        plain(q="attention.q_lin", k="attention.k_lin", v="attention.v_lin", o="attention.out_lin",
               up="ffn.lin1", down="ffn.lin2"),
        norms(None, "sa_layer_norm", None, "output_layer_norm"),
        layer="transformer.layer.{}.", embed="embeddings.word_embeddings.weight", **_ENCODER,
    ),
    "modernbert": Family(
        fused("attn.Wqkv", stacked) + fused("mlp.Wi", halves, ("gate", "up")) + plain(o="attn.Wo", down="mlp.Wo"),
        norms("attn_norm", None, "mlp_norm"), optional=("pre_attention",),
        embed="embeddings.tok_embeddings.weight", **_ENCODER,
    ),
    "modernbert_decoder": Family(
        plain(q="attn.q_proj", k="attn.k_proj", v="attn.v_proj", o="attn.Wo", down="mlp.Wo")
        + fused("mlp.Wi", halves, ("gate", "up")),
        norms("attn_norm", None, "mlp_norm"), declared=("modernbert-decoder",), optional=("pre_attention",),
        embed="embeddings.tok_embeddings.weight", **_ENCODER,
    ),
}  # fmt: skip
FAMILIES = {name: replace(family, declared=family.declared or (name,)) for name, family in FAMILIES.items()}


def find(declared: str, config: Mapping[str, Any], names: Iterable[str] = ()) -> tuple[str, Family] | None:
    """Name and layout of the family that a checkpoint declares; None for one that is not in the table.

    `names`: of its tensors, for families that have two layouts under one declaration.
    """
    found = [
        (name, family)
        for name, family in FAMILIES.items()
        if declared in family.declared and all(config.get(key) == value for key, value in family.when.items())
    ]
    ends = tuple(names)
    for name, family in found:
        if all(any(held.endswith(part.tensor) for held in ends) for part in family.parts):
            return name, family
    return found[0] if found else None
