"""The head as the reader after the last layer, against the norm of the product itself, and against transformers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from orchestrator.common.errors import UserError
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.roles.treatments import mediators, sinks, sources
from tests.naming import naming

MODELS = {  # model_type → further keys of a tiny config
    "llama": {"num_key_value_heads": 2}, "gemma": {"head_dim": 8, "num_key_value_heads": 2}, "gpt2": {}, "gpt_neox": {},
    "phi": {}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16}, "bloom": {}, "mpt": {}, "persimmon": {}, "gptj": {},
}  # fmt: skip
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 40,
    "max_position_embeddings": 32, "intermediate_size": 48, "rotary_dim": 4,
}  # fmt: skip


def _composition(reads: np.ndarray, writes: list[np.ndarray]) -> float:
    """C of a reader [·, d] and of the matrices [d, ·] that a layer writes with, each divided by its norm."""
    w = np.concatenate([write / np.linalg.norm(write) for write in writes], axis=1)
    d = min(reads.shape[1], len(w))
    return float(np.linalg.norm(reads[:, :d] @ w[:d]) / np.linalg.norm(reads) / np.linalg.norm(w))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("widths", [(16, 16, 16), (12, 16, 24), (24, 16, 12)])
def test_the_last_layer_is_read_by_the_head(
    checkpoint: Callable[..., Any], widths: tuple[int, ...], tied: bool
) -> None:
    ours = checkpoint(widths=widths)
    rng = np.random.default_rng(1)
    ours.spec["tie_embeddings"] = tied
    ours.tensors["model.norm.weight"] = rng.normal(1, 0.5, size=widths[-1]).astype(np.float32)
    if not tied:
        ours.tensors["lm_head.weight"] = rng.normal(size=(32, widths[-1])).astype(np.float32)
    table = ours.tensors["model.embed_tokens.weight" if tied else "lm_head.weight"][:, : widths[-1]]
    last = analyze(ours.write()).layers[-1].measures
    expected = _composition(
        table.astype(float) * ours.tensors["model.norm.weight"], [ours.weight(2, "o"), ours.weight(2, "down")]
    )
    assert last["source_mean"] == pytest.approx(expected, rel=1e-5)
    assert last["synapse_mediator"] == pytest.approx(np.sqrt(expected * last["sink_mean"]), rel=1e-5)


@pytest.mark.parametrize("model_type", MODELS)
def test_heads_and_final_norms_of_transformers(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SIZES | MODELS[model_type])
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(float(model_type != "gemma" and parameter.ndim == 1), 0.2)
    model.save_pretrained(tmp_path)
    head = model.get_output_embeddings().weight.double()
    norms = [m for n, m in model.named_modules() if "norm" in type(m).__name__.lower() and not re.search(r"\d", n)]
    scale = norms[-1].weight.double() + (model_type == "gemma")
    writes = _last_writes(model, model_type)
    expected = _composition((head * scale).detach().numpy(), writes)
    assert analyze(tmp_path).layers[-1].measures["source_mean"] == pytest.approx(expected, rel=1e-5)


def _last_writes(model: Any, model_type: str) -> list[np.ndarray]:
    """The last layer's o and down, [d, ·]."""
    names = ("o_proj", "down_proj", "c_proj", "out_proj", "dense", "fc2", "dense_4h_to_h", "fc_out")
    found = [w for n, w in model.named_parameters() if ".2." in n and n.split(".")[-2] in names and w.ndim == 2]
    return [w.detach().double().numpy().T if model_type == "gpt2" else w.detach().double().numpy() for w in found]


def test_without_a_head_the_last_layer_has_no_source(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    ours.spec["tie_embeddings"] = False
    assert analyze(ours.write()).layers[-1].measures["source_mean"] is None


def test_a_head_that_is_not_finite_is_a_finding_and_no_reader(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    ours.spec["tie_embeddings"] = False
    ours.tensors["lm_head.weight"] = np.full((32, 24), np.nan, np.float32)
    reading = analyze(ours.write())
    assert reading.layers[-1].measures["source_mean"] is None
    assert [finding.tensor for finding in reading.pathology] == ["lm_head.weight"]


def test_a_final_norm_of_another_model_is_refused(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    ours.tensors["model.norm.weight"] = np.ones(5, np.float32)
    with pytest.raises(UserError, match=naming("model.norm.weight", "24")):
        analyze(ours.write())


def test_a_mean_over_more_readers_varies_less() -> None:
    np.testing.assert_allclose(sources(4, head=False), 1 / np.sqrt([3, 2, 1, 1]))
    np.testing.assert_allclose(sources(4, head=True), 1 / np.sqrt([4, 3, 2, 1]))
    np.testing.assert_allclose(mediators(4, head=True), np.hypot(sources(4, head=True), sinks(4, head=True)) / 2)


@pytest.mark.parametrize("second", [None, "model.final_norm.weight"])
def test_an_inferred_head_needs_one_final_norm(checkpoint: Callable[..., Any], second: str | None) -> None:
    """Without a description; of two norms outside the layers, either could be the last."""
    ours = checkpoint(widths=(16,) * 4, norm="pre")
    ours.spec["tie_embeddings"] = False
    ours.tensors["lm_head.weight"] = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    declared = analyze(ours.write()).layers[-1].measures["source_mean"]
    if second:
        ours.tensors[second] = np.ones(16, np.float32)
    ours.write()
    (ours.path / "state.json").unlink()
    reading = analyze(ours.path)
    assert reading.family == "inferred"
    assert declared is not None
    assert reading.layers[-1].measures["source_mean"] == (None if second else pytest.approx(declared))
