"""Models whose layers have no roles here, or whose numbers are not weights, are named in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.model import CheckpointModel
from tests.naming import naming

SIZES = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
MIXTURES = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts", "olmoe": "num_experts"}


@pytest.mark.parametrize("mark", MIXTURES)
@pytest.mark.parametrize("declared", ["mystery", None])
def test_mixtures_of_experts_of_unknown_families_are_named(tmp_path: Path, mark: str, declared: str | None) -> None:
    config = AutoConfig.for_model(mark, **SIZES, **{MIXTURES[mark]: 6}, moe_intermediate_size=40)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"model_type": declared})) if declared else path.unlink()
    with pytest.raises(UserError, match=naming(tmp_path, "mixture of experts", "6 experts", "dense")):
        CheckpointModel(tmp_path)


def test_hybrids_and_encoder_decoders_are_named(tmp_path: Path) -> None:
    small = {"d_model": 24, "d_ff": 40, "d_kv": 8, "num_heads": 4, "num_layers": 2, "vocab_size": 64}
    T5ForConditionalGeneration(T5Config(**small)).save_pretrained(tmp_path / "t5")
    config = AutoConfig.for_model("mamba", hidden_size=24, num_hidden_layers=2, vocab_size=64, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mamba")
    with pytest.raises(UserError, match=naming(tmp_path / "t5", "cross-attention")):
        CheckpointModel(tmp_path / "t5")
    with pytest.raises(UserError, match=naming(tmp_path / "mamba", "state-space layers")):
        CheckpointModel(tmp_path / "mamba")


def test_packed_weights_are_named(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    del tensors[f"{name}.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": {"quant_method": "new"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=naming("1 of the 27 tensors", f"{name}.weight", "quantised")):
        CheckpointModel(tmp_path)
    tensors[f"{name}.qweight"] = torch.ones(3, 32, dtype=torch.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=naming("quantised", f"{name}.qweight")):
        CheckpointModel(tmp_path)
