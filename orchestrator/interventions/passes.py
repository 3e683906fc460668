"""One batch through a model: intact, with the stream before every layer kept, and again from any layer on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
            self.output = subject.run(self.tokens, self.mask)
        if len(self._before) != len(subject.layers):
            raise UserError(
                f"{subject.name} runs {len(self._before)} times through its {len(subject.layers)} layers: "
                "it shares weights between layers, so that no single one can be changed."
            )

    def _keep(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        self._before.append(inputs[0] if inputs else named["hidden_states"])
        self._after.append(output[0] if isinstance(output, tuple) else output)

    @property
    def positions(self) -> int:
        """Number of positions without padding."""
        return int(self.mask.sum())

    def streams(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Per layer, the stream before and after it at every position without padding, each [positions, D]."""
        for before, after in zip(self._before, self._after, strict=True):
            yield before[self.mask], after[self.mask]

    @torch.inference_mode()
    def edited(self, first: int, edit: AbstractContextManager[None]) -> Tensor:
        """The output under `edit`, which changes no layer before `first`: these are not computed again."""
        kept = self._before[first]
        before = self.subject.layers[:first]
        with edit, replaced(before, [lambda *_, **__: kept] * first):
            return self.subject.run(self.tokens, self.mask)
