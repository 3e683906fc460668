"""Matrices and norms that many families name alike."""

from __future__ import annotations

from typing import Any

from orchestrator.forensics.architecture.layout import fused, halves, norms, plain

QKV = plain(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj")
QKVO = QKV + plain(o="self_attn.o_proj")
UP_DOWN = plain(up="mlp.up_proj", down="mlp.down_proj")
LLAMA = QKVO + plain(gate="mlp.gate_proj") + UP_DOWN
FC = plain(up="mlp.fc1", down="mlp.fc2")
GATE_UP_DOWN = fused("mlp.gate_up_proj", halves, ("gate", "up")) + plain(down="mlp.down_proj")
PRE = norms("input_layernorm", None, "post_attention_layernorm")
POST = norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
PARALLEL = norms("input_layernorm", None, "input_layernorm")
SANDWICH = norms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
OPT: dict[str, Any] = {"parts": QKV + plain(o="self_attn.out_proj", up="fc1", down="fc2")}
