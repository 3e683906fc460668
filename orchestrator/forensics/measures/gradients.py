"""A brief gradient trace: the alignment of each matrix with the loss's own gradient on a text (SCIENCE §1)."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.transformer import Decoder
from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.probe import check, sizes

GROUP = 512  # tokens of one backward pass


def gradient_alignment(checkpoint: CheckpointModel, model: nn.Module, tokens: Tensor) -> list[dict[str, float]]:
    """Per layer, kind → cos(−gradient, w) of the stored matrix: the mean over backward passes of the next-token loss.

    `model`: the checkpoint's own, with its head, as `runner.trainable` gives it; its gradients are cleared. `tokens`
    [B, T]: rows of at least two, in passes of about 512 tokens. A matrix that has no gradient is left out. Raises
    `UserError` for tokens outside the vocabulary, and where the model has no matrix of the checkpoint's.
    """
    check(tokens, sizes(model)[0])
    if tokens.shape[1] < 2:
        raise UserError("Rows of 1 token have no next one, and so no next-token loss: give rows of at least two.")
    weights = {
        (index, part): _parameter(model, checkpoint, index, part.tensor)
        for index in range(len(checkpoint))
        for part in checkpoint.family.parts
        if set(part.kinds) <= set(checkpoint.kinds(index))
    }
    cosines: dict[tuple[int, str], list[float]] = defaultdict(list)
    for group in tokens.long().split(max(1, GROUP // tokens.shape[1])):
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            _loss(model, group).backward()
        for (index, part), w in weights.items():
            if w.grad is None:
                continue
            of_w, of_grad = (part.matrices(x, checkpoint.heads[index]) for x in (w.detach(), w.grad))
            for kind in part.kinds:
                if (cos := _cosine(-of_grad[kind], of_w[kind])) is not None:
                    cosines[index, kind].append(cos)
    model.zero_grad(set_to_none=True)
    return [
        {kind: sum(of) / len(of) for kind in checkpoint.family.kinds if (of := cosines[index, kind])}
        for index in range(len(checkpoint))
    ]


def _loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean next-token cross-entropy of `rows` [B, T], in nats."""
    if isinstance(model, Decoder):
        return model.loss(rows)
    logits = model(rows, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def _parameter(model: nn.Module, checkpoint: CheckpointModel, layer: int, tensor: str) -> nn.Parameter:
    """The parameter that holds a stored tensor of a layer: of the same name, under whatever module."""
    name = checkpoint.family.layer.format(layer) + tensor
    shape = checkpoint.tensors.shape(checkpoint.prefix(layer) + tensor)
    found = [p for n, p in model.named_parameters() if f".{n}".endswith(f".{name}") and tuple(p.shape) == tuple(shape)]
    if len(found) != 1:
        raise UserError(
            f"{type(model).__name__} has {len(found)} parameters called {name}, so that its gradient cannot be told: "
            "read the weights without --gradients."
        )
    return found[0]


def _cosine(a: Tensor, b: Tensor) -> float | None:
    a, b = a.flatten().double(), b.flatten().double()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else None
