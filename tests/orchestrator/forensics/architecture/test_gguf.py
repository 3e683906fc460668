"""Models of transformers, written as llama.cpp converts them, give the matrices and norms of the originals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as hf
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES

from orchestrator.common.errors import UserError
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.gguf import pairs_apart
from orchestrator.forensics.architecture.kinds import PLACES
from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.stream import STREAMED
from tests.naming import naming

Rows = np.ndarray
Change = Callable[[str, Rows, Any], Rows]
SIZES = {"vocab_size": 32, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2}
SMALL = {"vocab_size": 32, "n_layer": 2, "n_embd": 16, "n_head": 4, "n_positions": 16}


def unchanged(name: str, values: Rows, config: Any) -> Rows:
    return values


def interleaved(name: str, values: Rows, config: Any) -> Rows:
    """As llama.cpp turns pairs of neighbours, where transformers turns the first half of a head against the second."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return values
    rows = values.reshape(heads, 2, -1, values.shape[1])
    return np.stack([rows[:, 0], rows[:, 1]], axis=2).reshape(values.shape)


def plus_one(name: str, values: Rows, config: Any) -> Rows:
    return values + 1 if name.endswith("norm.weight") else values


def upright(name: str, values: Rows, config: Any) -> Rows:
    """GPT-2's Conv1D stores [in, out]."""
    return values.T if values.ndim == 2 and any(part in name for part in ("c_attn", "c_proj", "c_fc")) else values


def restacked(name: str, values: Rows, config: Any) -> Rows:
    """All of q, all of k, all of v, from group by group."""
    if not name.endswith("query_key_value.weight"):
        return values
    groups = getattr(config, "num_kv_heads", None) or config.num_attention_heads
    size = config.hidden_size // config.num_attention_heads
    split = values.reshape(groups, -1, size, values.shape[1])
    return np.concatenate(
        [part.reshape(-1, values.shape[1]) for part in (split[:, :-2], split[:, -2:-1], split[:, -1:])]
    )


# Architecture of GGUF → a model of transformers, and what the converter does to its tensors.
MODELS: dict[str, tuple[Any, Any, Change]] = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**GROUPED), interleaved),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config(**GROUPED), unchanged),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config(**GROUPED, head_dim=8), unchanged),
    "gemma": (hf.GemmaForCausalLM, hf.GemmaConfig(**GROUPED, head_dim=8), plus_one),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config(**GROUPED, head_dim=8), plus_one),
    "olmo2": (hf.Olmo2ForCausalLM, hf.Olmo2Config(**GROUPED), unchanged),
    "command-r": (hf.CohereForCausalLM, hf.CohereConfig(**GROUPED), unchanged),
    "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config(**GROUPED, pad_token_id=0), unchanged),
    "glm4": (hf.Glm4ForCausalLM, hf.Glm4Config(**GROUPED, head_dim=4, pad_token_id=0), unchanged),
    "starcoder2": (hf.Starcoder2ForCausalLM, hf.Starcoder2Config(**GROUPED), unchanged),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config(**SMALL), upright),
    "gptneox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**SIZES), restacked),
    "falcon": (
        hf.FalconForCausalLM,
        hf.FalconConfig(**SIZES, num_kv_heads=2, new_decoder_architecture=True),
        restacked,
    ),
    "bert": (hf.BertModel, hf.BertConfig(**SIZES), unchanged),
}


def converted(model: Any, architecture: str, change: Change, path: Path) -> Path:
    """The file that llama.cpp's converter would write, with the package's own table of names."""
    config = model.config
    arch = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == architecture)
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    kv_heads = [getattr(config, key, None) for key in ("num_kv_heads", "num_key_value_heads", "num_attention_heads")]
    writer.add_head_count_kv(next(filter(None, kv_heads)))
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
    if architecture == "bert":
        writer.add_causal_attention(False)
    if architecture == "llama":
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        if (scaling := config.rope_parameters["rope_type"]) != "default":
            writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    for name, values in model.state_dict().items():
        known = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is not None and not name.endswith(("inv_freq", "lm_head.weight")):
            writer.add_tensor(known, np.ascontiguousarray(change(name, values.numpy(), config)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", MODELS)
def test_the_matrices_and_norms_of_the_original(tmp_path: Path, architecture: str) -> None:
    build, config, change = MODELS[architecture]
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1) * 0.5)  # norms and biases too
    model.save_pretrained(tmp_path / "hf")
    original = CheckpointModel(tmp_path / "hf")
    found = CheckpointModel(converted(model, architecture, change, tmp_path / "m.gguf"))
    assert found.family_name == architecture
    assert found.heads == original.heads
    assert not found.assumed
    for layer, expected in zip(found, original, strict=True):
        assert layer.kinds == expected.kinds
        for kind in layer.kinds:
            assert torch.equal(layer.weight(kind), expected.weight(kind)), kind
        for place in PLACES:
            norm, wanted = layer.norm(place), expected.norm(place)
            assert (norm is None) == (wanted is None), place
            assert norm is None or torch.equal(norm, wanted), place
    assert torch.equal(torch.cat(list(found.embedding())), torch.cat(list(original.embedding())))


def test_nothing_reads_the_stream_of_an_encoder_directly(tmp_path: Path) -> None:
    build, config, change = MODELS["bert"]
    assert CheckpointModel(converted(build(config), "bert", change, tmp_path / "b.gguf")).head_name is None
    build, config, change = MODELS["llama"]  # of which the file has no head: tied
    assert CheckpointModel(converted(build(config), "llama", change, tmp_path / "l.gguf")).head_name is not None


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "linear", "factor": 2.0}])
def test_the_stream_of_random_tokens_turns_as_the_file_says(tmp_path: Path, scaling: dict[str, Any]) -> None:
    rope = {"rope_type": "default", "rope_theta": 300.0} | scaling
    options = GROUPED | {"rms_norm_eps": 0.1, "tie_word_embeddings": True, "initializer_range": 0.5}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**options, rope_parameters=rope))
    model.save_pretrained(tmp_path / "hf")
    path = converted(model, "llama", interleaved, tmp_path / "m.gguf")
    for a, b in zip(*(analyze(of, resamples=2).layers for of in (tmp_path / "hf", path)), strict=True):
        for name in STREAMED:
            found, wanted = b.measures[name], a.measures[name]
            assert found is None if scaling else found == pytest.approx(wanted, rel=1e-5), name


def test_interleaving_is_undone() -> None:
    rows = torch.arange(8.0).reshape(8, 1)  # two heads of four
    name, config = "model.layers.0.self_attn.q_proj.weight", hf.LlamaConfig(**SIZES | {"num_attention_heads": 2})
    stored = torch.from_numpy(interleaved(name, rows.numpy(), config))
    assert stored.flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    heads = Heads(2, 1, 4)
    assert torch.equal(pairs_apart(stored, heads)[0], rows)


def test_an_ffn_of_which_a_part_lacks_is_no_mixture(tmp_path: Path) -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED))
    path = converted(model, "llama", interleaved, tmp_path / "m.gguf")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"blk.1.ffn_gate.weight", b"blk.1.ffn_gate_exps.w"))
    with pytest.raises(UserError, match=naming("lacks 1", "blk.1.ffn_gate.weight")):
        CheckpointModel(path)


def test_a_file_that_names_no_architecture(tmp_path: Path) -> None:
    path = converted(hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)), "llama", interleaved, tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"general.architecture", b"general.architectur_"))
    with pytest.raises(UserError, match=naming(tmp_path, "general.architecture")):
        CheckpointModel(path)


def test_a_file_without_layers_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "clip")
    writer.add_block_count(2)
    writer.add_tensor("v.blk.0.attn_q.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=naming(tmp_path, "clip", "blk.0.attn_q.weight")):
        CheckpointModel(tmp_path / "m.gguf")
