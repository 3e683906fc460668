"""Structures planted in one layer of an untrained model are found there and nowhere else (SCIENCE §3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.transformer import PreNormBlock
from orchestrator.forensics import analyze
from tests.orchestrator.forensics.untrained import model, spec, write

STRENGTHS = (1.1, 1.25, 1.5, 2.0, 3.0)
SEEDS = 4
Plant = Callable[[list[PreNormBlock], int, float, torch.Generator], None]


def specialist(blocks: list[PreNormBlock], at: int, strength: float, rng: torch.Generator) -> None:
    """One FFN position in sixteen reads `strength` times as loudly."""
    mlp = blocks[at].mlp
    chosen = torch.randperm(len(mlp.gate_proj.weight), generator=rng)[: len(mlp.gate_proj.weight) // 16]
    for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
        weight[chosen] *= strength


def damper(blocks: list[PreNormBlock], at: int, strength: float, rng: torch.Generator) -> None:
    """A loud `down` behind a quiet post-norm, a quarter of whose positions write against what they read."""
    mlp = blocks[at].mlp
    mlp.down_proj.weight *= strength
    blocks[at].post_feedforward_layernorm.weight /= strength
    some = slice(0, mlp.down_proj.weight.shape[1] // 4)
    signs = torch.sign((mlp.gate_proj.weight[some] * mlp.up_proj.weight[some]).sum(1, keepdim=True))
    mlp.down_proj.weight[:, some] -= (strength - 1) * (mlp.up_proj.weight[some] * signs).T


def passthrough(blocks: list[PreNormBlock], at: int, strength: float, rng: torch.Generator) -> None:
    """Writes `strength` times less, and no FFN position stands out."""
    block = blocks[at]
    for weight in (block.mlp.down_proj.weight, block.self_attn.o_proj.weight):
        weight /= strength
    for weight in (block.mlp.gate_proj.weight, block.mlp.up_proj.weight):
        norms = weight.norm(dim=1, keepdim=True)
        weight *= norms.mean() / norms


def hub(blocks: list[PreNormBlock], at: int, strength: float, rng: torch.Generator) -> None:
    """Attention that reads, the louder the stronger, the few directions that all others write, evenly by heads,
    and writes into every direction alike. The FFN stays as it is, and so does the energy of every matrix."""
    shared = torch.randn(4, max(b.width for b in blocks), generator=rng)
    shared /= shared.norm(dim=1, keepdim=True)
    for index, block in enumerate(blocks):
        attention, directions = block.self_attn, shared[:, : block.width]
        if index != at:
            o = attention.o_proj.weight
            _add(o, directions.T @ torch.randn(4, o.shape[1], generator=rng), 1.0)
            continue
        for read in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
            _add(read, torch.randn(len(read), 4, generator=rng) @ directions, strength)
        o = attention.o_proj.weight
        u, s, vt = torch.linalg.svd(o, full_matrices=False)
        even = s.norm() / len(s) ** 0.5
        o.copy_((u * (s + min(1.0, strength - 1) * (even - s))) @ vt)


def _add(weight: Tensor, other: Tensor, strength: float) -> None:
    before = weight.norm()
    weight += strength * weight.std() * other
    weight *= before / weight.norm()


@pytest.mark.parametrize("profile", ["uniform", "ramp"])
@pytest.mark.parametrize("plant", [specialist, damper, passthrough, hub], ids=lambda plant: plant.__name__)
def test_what_is_planted_is_found(plant: Plant, profile: str, tmp_path: Path) -> None:
    role, recall, elsewhere = plant.__name__, {}, 0
    for strength in STRENGTHS:
        hits = 0
        for seed in range(SEEDS):
            decoder, at = model(spec(profile=profile), seed), 3 + seed % 6
            with torch.no_grad():
                plant(list(decoder.model.layers), at, strength, torch.Generator().manual_seed(seed))
            layers = analyze(write(decoder, tmp_path), seed=seed)["layers"]
            hits += layers[at]["role"] == role
            elsewhere += sum("/" not in layer["role"] for layer in layers if layer["layer"] != at)
        recall[strength] = hits / SEEDS
    others = elsewhere / (len(STRENGTHS) * SEEDS * 10)
    table = f"{profile} {role}: recall by strength {recall}, other layers given a role {others:.3f}"
    print(table)
    assert all(found == 1 for strength, found in recall.items() if strength >= 1.5), table
    assert others <= 0.02, table
