"""Laws of weights: one law for all layers, whose roles are then chance alone, and two under which layers differ."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.transformer import Decoder
from orchestrator.forensics.architecture.kinds import ATTENTION, FFN

RANK = 8
# Changes one matrix [out, in] in place, of a layer at a depth from 0, the first, to 1, the last.
Law = Callable[[Tensor, torch.Generator, float], None]


def lognormal(count: int, sigma: float, rng: torch.Generator) -> Tensor:
    """Scales whose logarithms have this standard deviation: [count]."""
    return (sigma * torch.randn(count, generator=rng)).exp()


def rows(weight: Tensor, rng: torch.Generator, depth: float) -> None:
    """Rows of unequal scale."""
    weight *= lognormal(len(weight), 0.3, rng)[:, None]


def rows_and_columns(weight: Tensor, rng: torch.Generator, depth: float) -> None:
    """Rows of very unequal scale, and columns of unequal scale."""
    weight *= lognormal(len(weight), 0.6, rng)[:, None]
    weight *= lognormal(weight.shape[1], 0.3, rng)


def low_rank(weight: Tensor, rng: torch.Generator, depth: float) -> None:
    """The same, plus a signal of rank 8 and of equal norm."""
    rows_and_columns(weight, rng, depth)
    rank = min(RANK, *weight.shape)
    signal = torch.randn(len(weight), rank, generator=rng) @ torch.randn(rank, weight.shape[1], generator=rng)
    weight += signal * (weight.norm() / signal.norm())


def heavy_tails(weight: Tensor, rng: torch.Generator, depth: float) -> None:
    """Entries of Student's t with 4 degrees of freedom, of the same variance."""
    normal, *rest = torch.randn(5, *weight.shape, generator=rng)
    t = normal / (sum(x.square() for x in rest) / 4).sqrt()
    weight.copy_(t / 2**0.5 * weight.std())


def drift(weight: Tensor, rng: torch.Generator, depth: float) -> None:
    """Rows that differ more, and all entries larger, the deeper the layer lies."""
    weight *= lognormal(len(weight), 0.1 + 0.5 * depth, rng)[:, None] * 3**depth


def scales(weight: Tensor, rng: torch.Generator, depth: float) -> None:
    """A scale of each matrix's own."""
    weight *= lognormal(1, 0.5, rng)


LAWS: dict[str, Law] = {
    "rows": rows, "rows and columns": rows_and_columns, "rank 8": low_rank, "t(4)": heavy_tails,
}  # fmt: skip
UNEQUAL: dict[str, Law] = {"drift over depth": drift, "scales that differ": scales}  # layers that are not exchangeable


def matrices(decoder: Decoder) -> list[list[Tensor]]:
    """The seven matrices of every layer."""
    return [
        [getattr(block.self_attn, f"{kind}_proj").weight for kind in ATTENTION]
        + [getattr(block.mlp, f"{kind}_proj").weight for kind in FFN]
        for block in decoder.model.layers
    ]


@torch.no_grad()
def under(law: Law, decoder: Decoder, seed: int) -> Decoder:
    """The model with all matrices of all layers under this law."""
    rng, layers = torch.Generator().manual_seed(seed), matrices(decoder)
    for index, layer in enumerate(layers):
        for weight in layer:
            law(weight, rng, index / max(1, len(layers) - 1))
    return decoder


@torch.no_grad()
def explode(weight: Tensor, times: float, seed: int) -> None:
    """Add one direction of this many times the spectral norm, as a diverging gate has it (SCIENCE §5)."""
    rng = torch.Generator().manual_seed(seed)
    u, v = (torch.nn.functional.normalize(torch.randn(n, generator=rng), dim=0) for n in weight.shape)
    weight += times * torch.linalg.matrix_norm(weight, ord=2) * torch.outer(u, v)
