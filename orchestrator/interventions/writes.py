"""One text through a model, with what each branch of each layer reads and writes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.forensics.measures.probe import branches, watch_parts
from orchestrator.interventions.frozen import FrozenNorm, freeze, identity
from orchestrator.interventions.passes import Pass
from orchestrator.interventions.subject import Subject

TOLERANCE = 1e-4  # of a branch's write, relative: what its last matrix does not explain


@dataclass(frozen=True)
class Output:
    """A branch's last matrix (`o`, `down`), and the norm that may follow it, with the σ of the last position."""

    module: nn.Module
    norm: FrozenNorm

    @torch.inference_mode()
    def writes(self, inner: Tensor) -> Tensor:
        """The writes to the stream [n, d] of inputs of the matrix [n, inputs], without the constant."""
        return self.norm((self.module(inner) - self.module(torch.zeros_like(inner[:1]))).double())

    @cached_property
    def constant(self) -> Tensor:
        """The write to the stream [d] of an input of zeros: biases."""
        with torch.inference_mode():
            nothing = torch.zeros_like(self._matrix[:1])
            return self.norm(self.module(nothing)[0].double()) + self.norm.shift

    def along(self, direction: Tensor) -> Tensor:
        """The write of a 1 at each entry that the matrix reads, along a direction of the stream [d]: [inputs]."""
        return self.norm.back(direction) @ self._matrix.double()

    @property
    def lengths(self) -> Tensor:
        """The length of the write of a 1 at each entry that the matrix reads [inputs]."""
        return self.norm(self._matrix.T.double()).norm(dim=-1)

    @property
    def _matrix(self) -> Tensor:
        weight = next(of for of in self.module.parameters() if of.ndim == 2)  # [d, inputs]
        return weight.detach() if isinstance(self.module, nn.Linear) else weight.detach().T  # GPT-2 stores it so


@dataclass(frozen=True)
class Branch:
    """A branch of one layer at the T positions of a text.

    `inner` is what its last matrix reads: the heads side by side, or the FFN's positions. `output` is None where that
    matrix and a norm do not make the write by themselves: it is gated, scaled, or made by experts.
    """

    write: Tensor  # what it adds to the stream [T, d]
    inner: Tensor | None  # [T, n]
    output: Output | None


@dataclass(frozen=True)
class Traced:
    """A text of T tokens in a model: the residual stream, and the branches of each layer; None where they do not add.

    `streams`: x_0, which the first layer reads, to x_L after the last, each [T, D].
    """

    tokens: Tensor
    logits: Tensor  # [T, V]
    streams: list[Tensor]
    branches: list[tuple[Branch, Branch] | None]  # attention, FFN


def trace_text(subject: Subject, tokens: Tensor) -> Traced:
    """Run `tokens` [T] and keep what every layer writes."""
    watched: list[dict[str, Tensor]] = [{} for _ in subject.layers]
    with ExitStack() as hooks:
        calls = [watch_parts(layer, hooks) for layer in subject.layers]
        for parts, kept in zip(subject.branches, watched, strict=True):
            _keep_input(parts.attention, "attention", kept, hooks)
            _keep_input(parts.down, "ffn", kept, hooks)
        one = Pass(subject, tokens[None], torch.ones_like(tokens[None], dtype=torch.bool))
    found: list[tuple[Branch, Branch] | None] = []
    streams: list[Tensor] = []
    for layer, (before, after) in enumerate(one.streams()):
        streams += [before] if layer == 0 else []
        streams.append(after)
        written = branches(before, after, calls[layer])
        if written is None:
            found.append(None)
            continue
        parts, norms = subject.branches[layer], _norms(subject.layers[layer])
        found.append(
            (
                _branch(written[0], parts.attention, watched[layer].get("attention"), norms),
                _branch(written[1], parts.down, watched[layer].get("ffn"), norms),
            )
        )
    return Traced(tokens, one.output.result[0], streams, found)


def _keep_input(module: nn.Module | None, name: str, kept: dict[str, Tensor], hooks: ExitStack) -> None:
    """Put what the module reads [T, n] into `kept`, when it runs while `hooks` is open."""

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            kept[name] = inputs[0].flatten(0, -2)

    if module is not None:
        hooks.callback(module.register_forward_pre_hook(note).remove)


def _norms(layer: nn.Module) -> list[nn.Module]:
    """The layer's direct children that may be norms."""
    return [child for child in layer.children() if all(of.ndim < 2 for of in child.parameters())]


def _branch(write: Tensor, module: nn.Module | None, inner: Tensor | None, norms: list[nn.Module]) -> Branch:
    weights = [] if module is None else [of for of in module.parameters() if of.ndim > 1]
    if module is None or inner is None or len(inner) != len(write) or len(weights) != 1 or weights[0].ndim != 2:
        return Branch(write, inner, None)
    with torch.inference_mode():
        made = module(inner[None, -1:])[0, 0]
    if made.shape != write[-1].shape:
        return Branch(write, inner, None)
    if _close(made, write[-1]):
        return Branch(write, inner, Output(module, identity(len(made), made.device)))
    for norm in norms:
        frozen = _frozen(norm, made)
        if frozen is not None and _close(frozen(made.double()) + frozen.shift, write[-1]):
            return Branch(write, inner, Output(module, frozen))
    return Branch(write, inner, None)


def _frozen(norm: nn.Module, x: Tensor) -> FrozenNorm | None:
    try:
        return freeze(norm, x)
    except (RuntimeError, TypeError):  # of another width, or no norm
        return None


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one.double() - other.double()).norm() <= TOLERANCE * other.double().norm())
