"""The layouts of known encoders, and of encoders beside a decoder, one entry per family."""

from __future__ import annotations

from typing import Any

from orchestrator.forensics.architecture.common_parts import FC, OPT
from orchestrator.forensics.architecture.layout import Family, fused, grouped, halves, norms, plain, stacked

_ENCODER: dict[str, Any] = {"final": "", "head": ""}  # whose head, if any, reads a further transform
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


ENCODERS = {
    "bart": Family(
        norms=norms(None, "self_attn_layer_norm", None, "final_layer_norm"),
        declared=("bart", "blenderbot-small", "marian", "mvp", "plbart"), **OPT, **_ENCODER,
    ),
    "mbart": Family(
        norms=norms("self_attn_layer_norm", None, "final_layer_norm"),
        declared=("mbart", "blenderbot", "pegasus", "m2m_100", "whisper"), **OPT, **_ENCODER,
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
        fused("mixer.Wqkv", stacked) + plain(o="mixer.out_proj") + FC,
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
    # Towers beside a text model, which `--weights visual` names.
    "qwen2_vl_vision": Family(
        fused("attn.qkv", stacked) + plain(o="attn.proj", up="mlp.fc1", down="mlp.fc2"),
        norms("norm1", None, "norm2"), layer="blocks.{}.",
        embed="", **_ENCODER,
    ),
    "qwen2_5_vl_vision": Family(
        fused("attn.qkv", stacked) + plain(o="attn.proj", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj"),
        norms("norm1", None, "norm2"), layer="blocks.{}.", embed="", **_ENCODER,
    ),
}  # fmt: skip
