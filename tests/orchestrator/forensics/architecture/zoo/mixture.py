"""Compares a mixture's experts and its router's share with what the modules of transformers compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.forensics.architecture.layer import Expert
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.router import router_shares
from tests.orchestrator.forensics.architecture.zoo.truth import Wrong, same

TRIED = 7  # vectors that an expert reads
ROUTED = 16384  # vectors that a router reads
# Activation of gate and up, or of up alone.
GATED: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda gate, up: F.silu(gate) * up,
    lambda gate, up: F.gelu(gate) * up,
    lambda gate, up: F.gelu(gate, approximate="tanh") * up,
    lambda gate, up: (up.clamp(-7, 7) + 1) * gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7)),  # gpt_oss
)
UNGATED: tuple[Callable[[Tensor], Tensor], ...] = (lambda up: F.relu(up).square(), F.relu, F.gelu, F.silu)


def check_experts(opened: CheckpointModel, model: nn.Module) -> int:
    """Number of experts that agree with the model's. Raises `Wrong` where one does not, or is not read."""
    found = _modules(model)
    layers = [index for index in range(len(opened)) if opened.mixture(index)]
    if len(layers) != len(found):
        raise Wrong(f"{len(found)} layers have experts, and {len(layers)} are read")
    checked = 0
    for index, (block, experts) in zip(layers, found, strict=True):
        mixture, width = opened.mixture(index), opened.width(index)
        assert mixture is not None
        x = torch.randn(TRIED, width, generator=torch.Generator().manual_seed(1))
        for expert in opened.experts(index):
            if expert.number is None:
                written = _without_biases(_shared(model, block))(x)
            else:
                chosen = torch.full((TRIED, 1), expert.number)
                written = _without_biases(experts)(x, chosen, torch.ones(TRIED, 1))
            if not any(same(written, guess) for guess in _guesses(expert, x)):
                raise Wrong(f"{expert.label} computes something else")
            checked += 1
        _check_router(opened, index, block, experts)
    return checked


def _guesses(expert: Expert, x: Tensor) -> list[Tensor]:
    up, down = x @ expert.weight("up").T, expert.weight("down").T
    if "gate" in expert.kinds:
        return [activation(x @ expert.weight("gate").T, up) @ down for activation in GATED]
    return [activation(up) @ down for activation in UNGATED]


def _modules(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Each block of experts, and the module of all its experts, in order."""
    return [
        (block, inner)
        for block in model.modules()
        for name, inner in block.named_children()
        if name == "experts" and isinstance(getattr(inner, "down_proj", None), nn.Parameter)
    ]


def _without_biases(module: nn.Module) -> nn.Module:
    for name, values in module.named_parameters():
        if name.endswith("bias") and "correction" not in name:
            values.data.zero_()
    return module


def _shared(model: nn.Module, block: nn.Module) -> nn.Module:
    """The module of the expert that reads every token: in the block of experts, or beside it."""
    paths = {inner: path for path, inner in model.named_modules()}
    around = model.get_submodule(paths[block].rpartition(".")[0])
    names = ("shared_experts", "shared_expert", "shared_mlp")
    return next(inner for of in (block, around) for name, inner in of.named_children() if name in names)


class _Seen(Exception):
    """Ends a block's pass once its router has chosen."""


def _check_router(opened: CheckpointModel, index: int, block: nn.Module, experts: nn.Module) -> None:
    shares, scale = router_shares(opened, index), opened.layer(index).norm("pre_ffn")
    if shares is None:
        raise Wrong(f"the router of layer {index} is not known")
    x = torch.randn(1, ROUTED, opened.width(index), generator=torch.Generator().manual_seed(2))
    seen: list[Tensor] = []

    def look(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.extend(of for of in (*args, *named.values()) if isinstance(of, Tensor) and not of.is_floating_point())
        raise _Seen

    hook = experts.register_forward_pre_hook(look, with_kwargs=True)
    try:
        block(x if scale is None else x * scale)
    except _Seen:
        pass
    finally:
        hook.remove()
    counts = torch.bincount(seen[0].flatten(), minlength=len(shares))
    expected = counts / counts.sum()
    if len(counts) != len(shares) or not torch.allclose(torch.tensor(shares), expected, atol=0.025):
        raise Wrong(f"layer {index}: the router's shares are {shares}, not {expected.tolist()}")
