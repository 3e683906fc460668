"""The layouts of known decoders whose layers are all of one attention and one FFN, one entry per family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.forensics.architecture.common_parts import (
    FC,
    GATE_UP_DOWN,
    LLAMA,
    OPT,
    PARALLEL,
    POST,
    PRE,
    QKV,
    QKVO,
    SANDWICH,
    UP_DOWN,
)
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
)


def _megatron(attention: str) -> tuple[Part, ...]:
    """The parts of a descendant of Megatron, whose attention module has the name `attention`."""
    others = plain(o=f"{attention}.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h")
    return fused(f"{attention}.query_key_value", grouped) + others


_CONV1D = tuple(
    replace(part, transposed=True)
    for part in (*fused("attn.c_attn", stacked), *plain(o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"))
)

_LN = norms("ln_1", None, "ln_2")
_GPT: dict[str, Any] = {"layer": "h.{}.", "embed": "wte.weight", "final": "ln_f.weight"}
_BLOOM: dict[str, Any] = _GPT | {"parts": _megatron("self_attention"), "embed": "word_embeddings.weight"}

DECODERS = {
    "llama": Family(
        LLAMA, PRE,
        declared=("norm=pre", "llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "granite", "smollm3",
                  "seed_oss", "helium", "ernie4_5", "internlm3", "cwm", "granite_swa", "hunyuan_v1_dense",
                  "iquestcoder", "eurobert", "esmc", "ultrabert", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl",
                  "qwen2_5_vl_text", "qwen2_5_omni_text", "qwen3_vl_text", "hunyuan_vl_text", "paddleocr_vl_text"),
    ),
    "doge": Family(LLAMA, PRE, aside="dt_proj"),
    "beam": Family(LLAMA, SANDWICH, aside="self_attn[.]gate_proj"),
    "bitnet": Family(LLAMA, PRE, aside=r"(attn|ffn)_sub_norm"),
    "hyperclovax": Family(
        LLAMA, norms("input_layernorm", "post_norm1", "post_attention_layernorm", "post_norm2"),
        optional=("post_attention", "post_ffn"),
    ),
    "gemma4": Family(LLAMA, SANDWICH, declared=("gemma4_text", "gemma4_unified_text"), aside="per_layer_"),
    "llama_sandwich": Family(LLAMA, SANDWICH, declared=("norm=sandwich",)),
    "gemma": Family(LLAMA, PRE, offset=1.0),
    "gemma2": Family(LLAMA, SANDWICH, offset=1.0),
    "gemma3": Family(LLAMA, SANDWICH, declared=("gemma3_text", "gemma3"), offset=1.0),
    "vaultgemma": Family(LLAMA, norms("input_layernorm", None, "pre_feedforward_layernorm"), offset=1.0),
    "olmo": Family(LLAMA, {}),
    "olmo2": Family(LLAMA, POST, declared=("olmo2", "olmo3", "exaone4")),
    "cohere": Family(LLAMA, PARALLEL, declared=("cohere", "cohere2")),
    "stablelm_parallel": Family(LLAMA, PARALLEL, declared=("stablelm",), when={"use_parallel_residual": True}),
    "stablelm": Family(LLAMA, PRE),
    "nemotron": Family(QKVO + UP_DOWN, PRE, offset=1.0, starts_at_0=False),
    "arcee": Family(QKVO + UP_DOWN, PRE, declared=("arcee", "jais2")),
    "nanochat": Family(QKVO + FC, {}),
    "apertus": Family(QKVO + UP_DOWN, norms("attention_layernorm", None, "feedforward_layernorm")),
    "starcoder2": Family(QKVO + plain(up="mlp.c_fc", down="mlp.c_proj"), PRE),
    "phi": Family(QKV + plain(o="self_attn.dense") + FC, PARALLEL, final="final_layernorm.weight"),
    "moshi": Family(
        plain(q="self_attn.q_proj.linear", k="self_attn.k_proj.linear", v="self_attn.v_proj.linear",
              o="self_attn.o_proj.linear", down="mlp.fc2") + fused("mlp.fc1", halves, ("gate", "up")),
        PRE,
    ),
    "phi3": Family(fused("self_attn.qkv_proj", stacked) + plain(o="self_attn.o_proj") + GATE_UP_DOWN, PRE),
    "glm": Family(QKVO + GATE_UP_DOWN, PRE),
    "glm4": Family(
        QKVO + GATE_UP_DOWN,
        norms("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ),
    "persimmon": Family(_megatron("self_attn"), PRE, final="final_layernorm.weight"),
    "gpt_neox": Family(
        _megatron("attention"), PRE, declared=("gpt_neox", "gpt_neox_japanese"), embed="embed_in.weight",
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
    "bloom": Family(norms=PRE, **_BLOOM),
    "falcon_one_norm": Family(
        norms=PARALLEL, declared=("falcon",), when={"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
        **_BLOOM,
    ),
    "falcon_two_norms": Family(
        norms=norms("ln_attn", None, "ln_mlp"), declared=("falcon",), when={"new_decoder_architecture": True}, **_BLOOM
    ),
    "falcon_sequential": Family(norms=PRE, declared=("falcon",), when={"parallel_attn": False}, **_BLOOM),
    "falcon": Family(norms=PARALLEL, **_BLOOM),
    "opt_post": Family(
        declared=("opt",), norms=norms(None, "self_attn_layer_norm", None, "final_layer_norm"),
        when={"do_layer_norm_before": False}, final="", **OPT,
    ),
    "opt": Family(
        norms=norms("self_attn_layer_norm", None, "final_layer_norm"), final="final_layer_norm.weight", **OPT
    ),
    "xglm": Family(
        declared=("xglm", "biogpt"), norms=norms("self_attn_layer_norm", None, "final_layer_norm"),
        final="layer_norm.weight", **OPT,
    ),
    "internlm2": Family(
        fused("attention.wqkv", grouped)
        + plain(o="attention.wo", gate="feed_forward.w1", up="feed_forward.w3", down="feed_forward.w2"),
        norms("attention_norm", None, "ffn_norm"), embed="tok_embeddings.weight", head="output.weight",
    ),
    "baichuan": Family(
        fused("self_attn.W_pack", stacked) + plain(o="self_attn.o_proj", gate="mlp.gate_proj") + UP_DOWN, PRE
    ),
    "qwen": Family(
        fused("attn.c_attn", stacked) + plain(o="attn.c_proj", up="mlp.w1", gate="mlp.w2", down="mlp.c_proj"),
        _LN, **_GPT,
    ),
    "chatglm2": Family(
        fused("self_attention.query_key_value", stacked) + plain(o="self_attention.dense", down="mlp.dense_4h_to_h")
        + fused("mlp.dense_h_to_4h", halves, ("gate", "up")),
        PRE, declared=("chatglm",), when={"multi_query_attention": True}, layer="encoder.layers.{}.",
        embed="embedding.word_embeddings.weight", final="encoder.final_layernorm.weight", head="output_layer.weight",
    ),
}  # fmt: skip
