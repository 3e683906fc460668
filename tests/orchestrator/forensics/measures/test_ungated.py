"""An FFN without a gate (GPT-2): the measures whose definition differs there, against float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures.clusters import clusters

WIDTH, FFN, LAYERS = 12, 60, 3


@pytest.fixture
def gpt2(tmp_path: Path) -> tuple[Path, GPT2LMHeadModel]:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_embd=WIDTH, n_inner=FFN, n_layer=LAYERS, n_head=3, n_positions=16,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_()
            if "ln_" in name:  # a scale that is mostly negative would be taken for one stored less 1
                parameter.abs_()
        for block in model.transformer.h:
            block.mlp.c_fc.weight[:, :9] *= 6  # Conv1D: [in, out]
            block.mlp.c_proj.weight[9:15] = -(block.mlp.c_fc.weight * block.ln_2.weight[:, None])[:, 9:15].T
    model.save_pretrained(tmp_path)
    return tmp_path, model


def _matrices(model: GPT2LMHeadModel, layer: int) -> dict[str, np.ndarray]:
    """Their norms folded in."""
    block = model.transformer.h[layer]
    before_attention, before_ffn = (norm.weight.detach().double().numpy() for norm in (block.ln_1, block.ln_2))
    q, k, v = np.split(block.attn.c_attn.weight.detach().double().numpy().T * before_attention, 3)
    o, up, down = (
        module.weight.detach().double().numpy().T for module in (block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    )
    return {"q": q, "k": k, "v": v, "o": o, "up": up * before_ffn, "down": down}


def _expected(w: dict[str, np.ndarray], gamma: np.ndarray) -> dict[str, Any]:
    norm, up, down = np.linalg.norm, w["up"], w["down"].T
    c = norm(up, axis=1) * norm(down, axis=1)
    robust = np.median(c) + 3 * 1.4826 * np.median(np.abs(c - np.median(c)))
    energy = {kind: (matrix**2).sum() for kind, matrix in w.items()}
    share = sum(energy[kind] for kind in "qkvo") / sum(energy.values())
    squares = {kind: (matrix**2).mean() for kind, matrix in w.items()}
    typical = [np.prod([squares[kind] for kind in "qkvo"]) ** 0.25, np.median(c) / WIDTH]
    cosines = (up * down).sum(1) / norm(up, axis=1) / norm(down, axis=1)
    found = clusters(np.stack([np.log(norm(up, axis=1)), np.log(norm(down, axis=1)), cosines], axis=1), c)
    assert found is not None
    masses = found.masses
    p = np.abs(gamma) / np.abs(gamma).sum()
    return {
        "cv": c.std() / c.mean(),
        "saturated": (c > c.mean() + 3 * c.std()).sum(),
        "saturated_robust": (c > robust).sum(),
        "depleted": (cosines < -3 / np.sqrt(WIDTH)).sum(),
        "gain_cv": c.std() / c.mean(),  # the gain of a position without a gate is its co-magnitude
        "gain_saturated": (c > robust).sum(),
        "loudest_gain": c.max() / np.median(c),
        "write_ratio": np.sqrt(squares["down"] / squares["up"]),
        "down_ratio": np.sqrt(squares["down"] / squares["up"]),
        "attention_share": share,
        "balance": -abs(share - 0.4),
        "branch_balance": -abs(typical[0] / sum(typical) - 0.4),
        "unique_roles": (masses >= 0.005).sum(),
        "ffn_cluster_evidence": np.sqrt(found.evidence),
        "ffn_cluster_entropy": -(masses[masses > 0] * np.log(masses[masses > 0])).sum(),
        "gamma_concentration": 1 - np.exp(-(p * np.log(p)).sum()) / WIDTH,
    }


def test_against_the_reference(gpt2: tuple[Path, GPT2LMHeadModel]) -> None:
    path, model = gpt2
    result = analyze(path, resamples=2)
    written = []
    for layer in range(LAYERS):
        w = _matrices(model, layer)
        gamma = model.transformer.h[layer].ln_2.weight.detach().double().numpy()
        measures = result.layers[layer].measures
        for key, value in _expected(w, gamma).items():
            assert measures[key] == pytest.approx(value, rel=1e-5), key
        assert measures["depleted"] >= 6
        assert all(value is None for key, value in measures.items() if key.endswith((".gate", ".gate_fraction")))
        c = np.linalg.norm(w["up"], axis=1) * np.linalg.norm(w["down"], axis=0)
        written.append(np.sqrt(w["down"] ** 2 @ c**2))
    for layer in range(LAYERS):
        ratio = written[layer].max() / np.median(np.concatenate(written))
        assert result.layers[layer].measures["super_weight_ratio"] == pytest.approx(ratio, rel=1e-5)


def test_composition_reads_what_there_is(gpt2: tuple[Path, GPT2LMHeadModel]) -> None:
    path, model = gpt2
    layers = [_matrices(model, layer) for layer in range(LAYERS)]
    units = [{kind: matrix / np.linalg.norm(matrix) for kind, matrix in w.items()} for w in layers]
    reads = [np.concatenate([w[kind] for kind in ("q", "k", "v", "up")]) for w in units]
    head = model.lm_head.weight.detach().double().numpy() * model.transformer.ln_f.weight.detach().double().numpy()
    reads.append(head)  # the last reader: the table, behind the final norm
    writes = [np.concatenate([w["o"], w["down"]], axis=1) for w in units]
    for layer, row in enumerate(analyze(path, resamples=2).layers):
        above = [
            np.linalg.norm(read @ writes[layer]) / np.linalg.norm(read) / np.linalg.norm(writes[layer])
            for read in reads[layer + 1 :]
        ]
        assert row.measures["source_mean"] == pytest.approx(np.mean(above), rel=1e-5)


def test_what_stands_in_is_told(gpt2: tuple[Path, GPT2LMHeadModel]) -> None:
    result = analyze(gpt2[0], resamples=2)
    assert set(result.substitutes) == {"co_magnitude", "down_ratio", "gamma_concentration"}
    assert "total_write" in result.missing  # the stream cannot follow GPT-2
    assert "post_norm_damped_fraction" in result.missing
