"""One batch through a model: intact, with the stream before every layer kept, and again from any layer on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.common.errors import UserError
from orchestrator.interventions.subject import Subject

Forward = Callable[..., Any]


@contextmanager
def replaced(layers: Iterable[nn.Module], forwards: Sequence[Forward]) -> Iterator[None]:
    """Inside the block each of `layers` computes what the forward at the same place does."""
    layers = list(layers)
    for layer, forward in zip(layers, forwards, strict=True):
        layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


@dataclass(frozen=True)
class Output:
    """A model's result, as `Subject.run` gives it, and the stream after its last layer [B, T, D]."""

    result: Tensor
    stream: Tensor


class Pass:
    """What a subject makes of `tokens` [B, T], padded on the right where `mask` [B, T] is False."""

    def __init__(self, subject: Subject, tokens: Tensor, mask: Tensor) -> None:
        self.subject = subject
        self.tokens, self.mask = tokens.to(subject.device), mask.to(subject.device)
        self._before: list[Tensor] = []  # the stream that each layer reads [B, T, D]
        self._after: list[Tensor] = []  # and the one that it returns
        with ExitStack() as hooks, torch.inference_mode():
            for layer in subject.layers:
                hooks.callback(layer.register_forward_hook(self._keep, with_kwargs=True).remove)
            result = subject.run(self.tokens, self.mask)
        if len(self._before) != len(subject.layers):
            raise UserError(
                f"{subject.name} runs {len(self._before)} times through its {len(subject.layers)} layers: "
                "it shares weights between layers, so that no single one can be changed."
            )
        self.output = Output(result, self._after[-1])

    def _keep(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        self._before.append(inputs[0] if inputs else named["hidden_states"])
        self._after.append(_stream(output))

    @property
    def positions(self) -> int:
        """Number of positions without padding."""
        return int(self.mask.sum())

    def streams(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Per layer, the stream before and after it at every position without padding, each [positions, D]."""
        for before, after in zip(self._before, self._after, strict=True):
            yield before[self.mask], after[self.mask]

    @torch.inference_mode()
    def edited(self, first: int, edit: AbstractContextManager[None]) -> Output:
        """The output under `edit`, which changes no layer before `first`: these are not computed again."""
        kept = self._before[first]
        before = self.subject.layers[:first]
        last: list[Tensor] = []
        with edit, replaced(before, [lambda *_, **__: kept] * first), ExitStack() as hooks:
            keep = self.subject.layers[-1].register_forward_hook(lambda _, __, output: last.append(_stream(output)))
            hooks.callback(keep.remove)
            result = self.subject.run(self.tokens, self.mask)
        return Output(result, last[-1])


def _stream(output: Any) -> Tensor:
    """The residual stream that a layer returns, alone or first in a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
