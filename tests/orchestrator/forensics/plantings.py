"""Structures planted in one layer of an untrained model, one recipe for each way to a role (SCIENCE §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.transformer import Decoder, PreNormBlock
from tests.orchestrator.forensics.untrained import model, spec

SHARED = 4  # directions of the residual stream through which a hub meets the other layers
Blocks = list[PreNormBlock]
Recipe = Callable[[Blocks, int, float, torch.Generator], None]


def specialist(blocks: Blocks, at: int, strength: float, rng: torch.Generator) -> None:
    """One FFN position in sixteen reads `strength` times as loudly."""
    mlp = blocks[at].mlp
    chosen = torch.randperm(len(mlp.gate_proj.weight), generator=rng)[: len(mlp.gate_proj.weight) // 16]
    for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
        weight[chosen] *= strength


def damper(blocks: Blocks, at: int, strength: float, rng: torch.Generator) -> None:
    """A loud `down`, a quarter of whose positions write against what they read, behind a post-norm that damps half of
    the coordinates.

    Neither is any position louder than the others, as in a specialist, nor does the layer write less, as a passthrough.
    """
    mlp, gamma = blocks[at].mlp, blocks[at].post_feedforward_layernorm.weight
    mlp.down_proj.weight *= strength
    some = mlp.down_proj.weight[:, : mlp.down_proj.weight.shape[1] // 4]
    norms = some.norm(dim=0)
    some -= (strength - 1) * mlp.up_proj.weight[: some.shape[1]].T
    some *= norms / some.norm(dim=0)
    norm = gamma.norm()
    gamma[::2] /= strength
    gamma *= norm / gamma.norm()


def passthrough(blocks: Blocks, at: int, strength: float, rng: torch.Generator) -> None:
    """Writes `strength` times less: behind a post-norm, the scale of the matrices themselves would mean nothing."""
    for norm in (blocks[at].post_attention_layernorm, blocks[at].post_feedforward_layernorm):
        norm.weight /= strength


def even_hub(blocks: Blocks, at: int, strength: float, rng: torch.Generator) -> None:
    """Attention that writes into all directions alike, while the others' leans to a few, which it reads."""
    shared = _directions(blocks, 1, rng)[0]
    for index, block in enumerate(blocks):
        attention = block.self_attn
        if index != at:
            _lean(attention.o_proj.weight, shared, min(1.0, strength - 1), rng, writes=True)
            continue
        for weight in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
            _lean(weight, shared, strength - 1, rng)
        o = attention.o_proj.weight
        u, s, vt = torch.linalg.svd(o, full_matrices=False)
        even = s.norm() / len(s) ** 0.5
        evened = (u * (s + min(1.0, strength - 1) * (even - s))) @ vt
        o.copy_(evened * (o.norm() / evened.norm()))  # a quieter one would be a passthrough's


def meeting_hub(blocks: Blocks, at: int, strength: float, rng: torch.Generator) -> None:
    """Attention that reads the directions into which all others write, and writes those that all others read.

    Nothing but composition is planted: rows that read and columns that write keep their norms, so that no layer's
    FFN positions, heads or energies change, and the planted layer's `o` is of no higher rank than the others'.
    """
    written, read = _directions(blocks, 2, rng)
    for index, block in enumerate(blocks):
        attention, mlp = block.self_attn, block.mlp
        writers, readers = [attention.o_proj], [attention.q_proj, attention.k_proj, attention.v_proj]
        if index != at:
            writers, readers = [*writers, mlp.down_proj], [*readers, mlp.up_proj]
        into, out_of = (read, written) if index == at else (written, read)
        for writer in writers:
            _lean(writer.weight, into, strength - 1, rng, writes=True)
        for reader in readers:
            _lean(reader.weight, out_of, strength - 1, rng)


def _directions(blocks: Blocks, sets: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Orthonormal directions of the residual stream, `SHARED` in each set: [SHARED, width]."""
    width = max(block.width for block in blocks)
    return torch.linalg.qr(torch.randn(width, sets * SHARED, generator=rng))[0].T.split(SHARED)


def _lean(weight: Tensor, directions: Tensor, strength: float, rng: torch.Generator, writes: bool = False) -> None:
    """Lean every vector of a matrix, row that reads or column that writes, towards the directions; norms stay."""
    vectors = weight.T if writes else weight
    norms = vectors.norm(dim=1, keepdim=True)
    along = torch.randn(len(vectors), SHARED, generator=rng) @ directions[:, : vectors.shape[1]]
    vectors += strength * weight.std() * along
    vectors *= norms / vectors.norm(dim=1, keepdim=True)


@dataclass(frozen=True)
class Planting:
    """A structure whose strength begins at 1, which is nothing, and the strength from which it must be found."""

    role: str
    recipe: Recipe
    found_from: float


# The meeting hub may be missed below 2.5: at 2, four directions hold 6 % of a matrix's energy, and what that adds to
# sink_mean and synapse_mediator chance gives too; its other features (rank, balance, evenness, coupling) stay put.
PLANTINGS = {
    "specialist": Planting("specialist", specialist, 1.5),
    "damper": Planting("damper", damper, 1.5),
    "passthrough": Planting("passthrough", passthrough, 1.5),
    "even hub": Planting("hub", even_hub, 1.5),
    "meeting hub": Planting("hub", meeting_hub, 2.5),
}


@torch.no_grad()
def planted(recipe: Recipe, strength: float, seed: int, profile: str = "uniform") -> tuple[Decoder, int]:
    """A model of 11 layers, one of which the recipe has changed, and that layer."""
    decoder, at = model(spec(profile=profile), seed), 3 + seed % 6
    recipe(list(decoder.model.layers), at, strength, torch.Generator().manual_seed(seed))
    return decoder, at
