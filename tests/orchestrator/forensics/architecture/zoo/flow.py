"""The numbers that flow through a model of transformers, whatever its modules are called."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TOKENS = 7  # unlike any size of the tiny models
NORM = re.compile(r"(Layer|RMS|[a-z]|^)Norm(1D|1P)?$|Norm(Gated)?$")
PRODUCTS = {"matmul", "__matmul__", "bmm", "baddbmm", "einsum"}


@dataclass
class Product:
    """One matrix product of a stored matrix: what it read [tokens, in] and wrote [tokens, out]."""

    read: Tensor
    written: Tensor


@dataclass
class Attention:
    """One attention, every head: query and key of the first token (which no rotation turns), values, and the result."""

    query: Tensor | None = None  # [heads, head_dim]
    key: Tensor | None = None
    value: Tensor = field(default_factory=lambda: torch.empty(0))  # [heads, tokens, head_dim]
    result: Tensor = field(default_factory=lambda: torch.empty(0))  # [heads, tokens, head_dim]


@dataclass
class Norm:
    """One norm module's input and output, [tokens, width]."""

    module: nn.Module
    read: Tensor
    written: Tensor


class Recorder(TorchFunctionMode):
    """Records products and attentions; `change` may replace what a product writes."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.change = change
        self.products: list[Product] = []
        self.attentions: list[Attention] = []
        self.pending: Attention | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is F.scaled_dot_product_attention:
            return self._sdpa(func, args, kwargs)
        out = func(*args, **kwargs)
        if func is F.linear:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            return self._product(args[0] if args else kwargs["input"], out, weight)
        if name == "addmm":
            return self._product(args[1], out, args[2])
        if name == "conv1d" and len(args) > 1 and args[1].shape[1:] == (args[0].shape[1], 1):  # a Linear by its shape
            return self._product(args[0].transpose(1, 2), out.transpose(1, 2), args[1]).transpose(1, 2)
        if name in PRODUCTS and isinstance(out, Tensor):
            given = [*args, *(kwargs[k] for k in ("batch1", "batch2") if k in kwargs)]
            operands = [a for a in (given[1:] if name in {"baddbmm", "einsum"} else given) if isinstance(a, Tensor)]
            if len(operands) == 2 and operands[1].dim() == 2 and operands[0].dim() in (2, 3):
                return self._product(operands[0], out, operands[1])
            if len(operands) == 2:
                self._attend(operands[0], operands[1], out, args[0] if name == "einsum" else "")
        return out

    def _product(self, read: Tensor, written: Tensor, weight: Tensor) -> Tensor:
        if read.numel() // max(read.shape[-1], 1) == TOKENS:
            if self.change is not None:
                written = self.change(read.detach().reshape(TOKENS, -1), written)
            self.products.append(
                Product(read.detach().reshape(TOKENS, -1).clone(), written.detach().reshape(TOKENS, -1).clone())
            )
        return written

    def _sdpa(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        query, key, value = args[:3] if len(args) > 2 else [kwargs[k] for k in ("query", "key", "value")]
        out: Tensor = func(*args, **kwargs)
        if query.shape[-2] == TOKENS:
            heads = query.shape[-3]
            share = heads // value.shape[-3]
            self.attentions.append(
                Attention(
                    query[..., 0, :].reshape(heads, -1).clone(),
                    key[..., 0, :].reshape(key.shape[-3], -1).repeat_interleave(share, 0),
                    value.reshape(-1, TOKENS, value.shape[-1]).repeat_interleave(share, 0),
                    out.reshape(heads, TOKENS, -1).clone(),
                )
            )
        return out

    def _attend(self, a: Tensor, b: Tensor, out: Tensor, equation: str) -> None:
        """Note scores [.., T, T] = q kᵀ, and results = scores v."""
        if equation:
            a, b, out = _aligned(equation, a, b, out)
        if out.dim() < 3 or a.dim() < 3:
            return
        b = b.expand(*out.shape[:-2], *b.shape[-2:])
        if out.shape[-2:] == (TOKENS, TOKENS) and a.shape[-2] == TOKENS and b.shape[-1] == TOKENS:
            if a.shape[-1] != TOKENS:
                query = a[..., 0, :].reshape(-1, a.shape[-1]).clone()
                key = b[..., :, 0].reshape(-1, a.shape[-1]).clone()
                self.pending = Attention(query, key)
            return
        if a.shape[-2:] == (TOKENS, TOKENS) and b.shape[-2] == TOKENS:
            found, self.pending = self.pending or Attention(), None
            found.value = b.reshape(-1, TOKENS, b.shape[-1]).detach().clone()
            found.result = out.reshape(-1, TOKENS, b.shape[-1]).detach().clone()
            self.attentions.append(found)


def _aligned(equation: str, a: Tensor, b: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The operands of an einsum as those of a batched matrix product, where it is one."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    left, right = inputs.split(",")
    if "." in equation or not output:
        return a, b, out
    shared = [c for c in output if c in left and c in right]
    rows = [c for c in output if c in left and c not in right]
    columns = [c for c in output if c in right and c not in left]
    inner = [c for c in left if c in right and c not in output]
    if len(rows) != 1 or len(columns) != 1 or len(inner) != 1:
        return a, b, out
    order = lambda given, wanted: [given.index(c) for c in wanted]  # noqa: E731
    return (
        a.permute(order(left, [*shared, *rows, *inner])),
        b.permute(order(right, [*shared, *inner, *columns])),
        out.permute(order(output, [*shared, *rows, *columns])),
    )


@dataclass
class Flow:
    """The record of one run of a model, in order."""

    products: list[Product]
    attentions: list[Attention]
    norms: list[Norm]


def run(model: nn.Module, change: Callable[[Tensor, Tensor], Tensor] | None = None) -> Flow:
    """Run a model on a few tokens and return its flow."""
    norms: list[Norm] = []

    def note(module: nn.Module, args: Any, out: Any) -> None:
        read, out = args[0] if args else None, out[0] if isinstance(out, tuple) else out
        if isinstance(read, Tensor) and isinstance(out, Tensor) and read.numel() == TOKENS * read.shape[-1]:
            norms.append(
                Norm(module, read.detach().reshape(TOKENS, -1).clone(), out.detach().reshape(TOKENS, -1).clone())
            )

    hooks = [module.register_forward_hook(note) for module in model.modules() if NORM.search(type(module).__name__)]
    recorder = Recorder(change)
    with torch.no_grad(), recorder:
        model(input_ids=torch.tensor([[5, 9, 11, 23, 8, 31, 17]]))
    for hook in hooks:
        hook.remove()
    return Flow(recorder.products, recorder.attentions, norms)


def silence(model: nn.Module) -> None:
    """Biases to 0 and norms within attention to a constant: what is left of a projection is its matrix."""
    for name, parameter in model.named_parameters():
        words = name.lower()
        if (
            words.endswith("bias") and parameter.dim() == 1
        ) or "self.conv." in words:  # beside Nyströmformer's attention
            parameter.data.zero_()
        elif any(
            w in words
            for w in (
                "q_norm",
                "k_norm",
                "q_layernorm",
                "k_layernorm",
                "query_layernorm",
                "key_layernorm",
                "query_norm",
                "key_norm",
                "q_ln",
                "k_ln",
            )
        ):
            parameter.data.fill_(0.5)
