"""The router's share of each expert: how often a mixture's router chooses it by its weights alone (SCIENCE §1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from orchestrator.forensics.architecture.experts import Router
from orchestrator.forensics.architecture.model import CheckpointModel

DIRECTIONS = 4096  # isotropic Gaussian vectors that the router reads
SEED = 0  # a part of the definition
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(-1),
    "logits": lambda logits: logits,
}
RIDGE = 1e-9  # of the Gram's mean diagonal: more experts than coordinates leave it singular


def router_shares(model: CheckpointModel, index: int) -> list[float] | None:
    """Per expert of a layer, its share of the places that the router fills: [experts], 1 in sum.

    The router, times the scale of the FFN's pre-norm, reads `DIRECTIONS` Gaussian vectors of independent entries of
    variance 1. Its logits on them are Gaussian with the Gram of its rows as covariance, and are drawn from this Gram's
    Cholesky factor: a rotation of the stream leaves them. None without a router that is known.
    """
    mixture = model.mixture(index)
    router = None if mixture is None else mixture.router
    if router is None:
        return None
    prefix = model.prefix(index)
    weight, scale = model.tensors.read(prefix + router.weight), model.layer(index).norm("pre_ffn")
    rows = (weight if scale is None else weight * scale).double()
    gram = rows @ rows.T
    gram.diagonal().add_(RIDGE * float(gram.trace()) / len(gram) or 1.0)
    draw = torch.randn(DIRECTIONS, len(gram), dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    logits = draw @ torch.linalg.cholesky(gram).T
    added, correction = (
        None if name is None else model.tensors.read(prefix + name).double().flatten()
        for name in (router.added, router.correction)
    )
    chosen = choose(logits if added is None else logits + added, router, correction)
    counts = np.bincount(chosen.flatten().numpy(), minlength=len(gram))
    shares: list[float] = (counts / counts.sum()).tolist()
    return shares


def choose(logits: Tensor, router: Router, correction: Tensor | None) -> Tensor:
    """The experts that a router chooses for each token, from its logits [tokens, experts]: [tokens, places].

    Where there are groups, experts are chosen from those whose best scores sum highest (DeepSeek-V2 and V3).
    """
    if router.cap:
        logits = router.cap * torch.tanh(logits / router.cap)
    if correction is not None:
        logits = SCORES[router.scoring](logits) + correction
    elif router.groups > 1 and router.pooled > 1:
        logits = logits.sigmoid()  # a sum of scores orders groups otherwise than one of logits
    if router.kept < router.groups:
        grouped = logits.unflatten(-1, (router.groups, -1))
        best = grouped.topk(router.pooled).values.sum(-1).topk(router.kept).indices
        left = torch.ones(best.shape[0], router.groups, dtype=torch.bool).scatter(-1, best, False)
        logits = grouped.masked_fill(left[..., None], -torch.inf).flatten(-2)
    return logits.topk(router.places).indices
