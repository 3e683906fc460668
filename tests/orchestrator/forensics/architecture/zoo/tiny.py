"""Tiny models of every text family that transformers builds, found in its own mappings."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedModel,
)

MAPPINGS = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING)
VOCABULARY, WIDTH, FFN, LAYERS, HEADS, HEAD_DIM = 48, 32, 40, 3, 4, 8  # FFN: unlike any other size

LARGEST = 8_000_000  # parameters

SEEING = {config.model_type for config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}  # beside a vision tower
LAYER_TYPES = {"linear_attention", "conv", "mamba", "recurrent", "chunked_attention"}  # of hybrids

# Size → the names that configurations have for it.
SIZES: dict[tuple[str, ...], Any] = {
    ("vocab_size", "vocab_size_per_layer_input"): VOCABULARY,
    ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "word_embed_proj_dim", "embedding_size"): WIDTH,
    ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "ffn_hidden_size", "d_ff", "d_inner", "dff", "dim_ff",
     "encoder_ffn_dim", "decoder_ffn_dim"): FFN,
    ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
     "num_decoder_layers"): LAYERS,
    ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads",
     "decoder_attention_heads"): HEADS,
    ("num_key_value_heads",): 2,
    ("head_dim", "attention_head_size", "global_head_dim"): HEAD_DIM,
    ("max_position_embeddings", "n_positions", "max_seq_len"): 64,
    ("sliding_window", "attention_window_size"): 16,
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"): 4,
    ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"): 24,
    ("num_experts_per_tok", "moe_k", "top_k_experts"): 2,
    ("q_lora_rank", "kv_lora_rank"): 16,
    ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"): HEAD_DIM,
    ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"): 4,
    ("mamba_d_head", "mamba_head_dim"): 16,
    ("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_ssm"): 8,
    ("image_size", "img_size"): 16,
    ("patch_size",): 8,
    ("depth", "embed_dim_vision"): 2,
    ("pad_token_id",): 0,
    ("bos_token_id",): 1,
    ("eos_token_id",): 2,
}  # fmt: skip


# What a family needs besides, or otherwise.
HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
LATENT = {"num_key_value_heads": HEADS}
TURNED = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
OTHERS: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "axk2": LATENT,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT,
    "longcat_flash": LATENT,
    "minicpm3": LATENT,
    "unlimited_ocr_text": LATENT,
    "youtu": LATENT,
    "dots3_note_text": LATENT,
    "esmc": LATENT,
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global"], LAYERS]]},
    "neomme": {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 2},
    "roc_bert": {
        "shape_embed_dim": 8,
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 8,
        "shape_vocab_size": 8,
    },
    "xmod": {"default_language": "en_XX"},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8), "attn_layers": ["local"] * LAYERS},
    "cpmant": {
        "position_bias_num_buckets": 8,
        "prompt_length": 0,
        "prompt_types": 2,
        "segment_types": 40,
        "dim_head": HEAD_DIM,
    },
    "ctrl": {"dff": FFN},
    "gemma4_text": {"num_experts": None, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "qwen2_vl": {"vision_config": {"depth": 1, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 2}},
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "paddleocr_vl_text", "qwen2_5_omni_text"), TURNED),
    "moshi": {"ffn_dim": 2 * FFN},
    "nemotron_h": {"n_groups": 1},
    "dots1": {"n_shared_experts": 1},
    "zaya": {"num_experts_per_tok": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": FFN, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"] * LAYERS,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "cohere_compass_text": {"layer_types": ["full_attention"] * LAYERS},
    "roformer": {"embedding_size": WIDTH},
    "nystromformer": {"num_landmarks": 7, "segment_means_seq_len": 7},
}


# Families that need more than sizes: other packages, pixels, more tokens, or sizes that hang on each other.
UNBUILT = frozenset(
    ("blt", "chameleon", "cohere_compass", "cohere_compass_text", "cosmos3_edge", "deepseek_ocr2", "dots3_note",
     "dots3_note_text", "emu3", "ernie4_5_vl_moe", "evolla", "falcon_h1", "fast_vlm", "florence2", "gemma3n",
     "gemma4_assistant", "gemma4_unified_assistant", "glm46v", "glm4v", "glm4v_moe", "glm5_next", "glm_ocr",
     "glmga", "granite4_vision", "granite_docling", "hunyuan_vl", "inkling2", "janus", "kosmos-2", "kosmos-2.5",
     "llama4", "longformer", "molmo2", "mra", "muse_glimmer", "muse_spark", "musicgen", "musicgen_melody",
     "nemotron_h_omni", "perceiver", "perception_lm", "pp_formulanet", "qwen4_exp", "qwen4_exp_text", "t5gemma2",
     "vision-encoder-decoder", "zamba", "zamba2")
)  # fmt: skip


def marks() -> list[str]:
    """The model_type of every family with a language model: causal, masked, or beside a vision tower."""
    configs = [config for mapping in MAPPINGS for config in mapping]
    known = {config.model_type for config in configs if config.__module__.startswith("transformers.")}
    return sorted(mark for mark in known if mark in CONFIG_MAPPING and mark not in UNBUILT)


def configuration(mark: str, **others: Any) -> Any:
    """The configuration of a tiny model; `others` are keys that the family needs besides, or otherwise."""
    return _shrunk(CONFIG_MAPPING[mark], OTHERS.get(mark, {}) | others)


def _shrunk(kind: Any, others: dict[str, Any]) -> Any:
    try:
        usual = kind()
    except Exception:  # some need a size to be given
        usual = kind(**others)
    held = {name for name in {*vars(usual), *usual.attribute_map} if not name.startswith("_")}
    sizes = {name: size for names, size in SIZES.items() for name in names if name in held}
    aliases = usual.attribute_map
    sizes = {
        name: size for name, size in sizes.items() if aliases.get(name, name) == name or aliases[name] not in sizes
    }
    inner = {key: _part(type(part)) for key in usual.sub_configs if (part := getattr(usual, key, None)) is not None}
    if "layer_types" in vars(usual) and LAYER_TYPES & set(getattr(usual, "layer_types", None) or ()):
        kinds = list(dict.fromkeys(usual.layer_types))  # one layer of each kind, and attention in the last
        kinds = sorted(kinds, key=lambda kind: "attention" in kind and "linear" not in kind)
        sizes["layer_types"] = (kinds * LAYERS)[: max(LAYERS, len(kinds))][-max(LAYERS, len(kinds)) :]
        sizes["num_hidden_layers"] = len(sizes["layer_types"])
    config = kind(**sizes | inner | others)
    config.use_cache = False
    return config


def _part(kind: Any) -> dict[str, Any]:
    """A part of a multimodal model, as a dict."""
    found: dict[str, Any] = _shrunk(kind, OTHERS.get(kind.model_type, {})).to_dict()
    return found


def build(mark: str, **others: Any) -> PreTrainedModel:
    """A model with every parameter random, biases and norm scales too."""
    torch.manual_seed(0)
    config = configuration(mark, **others)
    mapping = next(mapping for mapping in MAPPINGS if type(config) in mapping)
    kind = mapping[type(config)]
    config.is_decoder = mapping is MODEL_FOR_CAUSAL_LM_MAPPING if hasattr(config, "is_decoder") else False
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind._from_config(config).parameters())
    assert size < LARGEST, f"{mark} has {size} parameters: give more of its sizes"
    model: PreTrainedModel = kind._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            # tables of sines are none of the weights; what corrects a router's choice is no trained parameter
            if values.requires_grad or name.endswith(("correction_bias", "expert_bias")):
                values.add_(torch.randn_like(values) * 0.3)
    return model
