"""One batch through a model: intact, with the stream before every layer kept, and again from any layer on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.common.errors import UserError
from orchestrator.common.shapes import one_line
from orchestrator.forensics.measures.probe import check
from orchestrator.interventions.subject import FORMS, Subject

Forward = Callable[..., Any]  # of the stream and of what else the layer is given; returns the stream


@contextmanager
def replaced(layers: Iterable[nn.Module], forwards: Sequence[Forward]) -> Iterator[None]:
    """Inside the block each of `layers`, of a subject, computes what the forward at the same place does.

    A forward gets the stream first, however the model hands it over; what it returns is handed back as the layer does.
    """
    layers = list(layers)
    outer = [layer.__dict__.get("forward") for layer in layers]  # of a block around this one
    for layer, forward in zip(layers, forwards, strict=True):
        layer.__dict__["forward"] = _in_form(forward, FORMS[layer])
    try:
        yield
    finally:
        for layer, before in zip(layers, outer, strict=True):
            if before is None:
                del layer.__dict__["forward"]
            else:
                layer.__dict__["forward"] = before


def _in_form(forward: Forward, form: int) -> Forward:
    def call(*args: Any, **named: Any) -> Any:
        result = stream_of(forward(*args, **named) if args else forward(named.pop("hidden_states"), **named))
        return (result, *[None] * (form - 1)) if form else result

    return call


def own(layer: nn.Module) -> Forward:
    """The layer's own forward, which returns the stream alone."""
    forward = layer.forward
    return lambda *args, **named: stream_of(forward(*args, **named))


@dataclass(frozen=True)
class Output:
    """A model's result, as `Subject.run` gives it, and the stream after its last layer [B, T, D]."""

    result: Tensor
    stream: Tensor


class Pass:
    """A run of a subject on `tokens` [B, T], padded on the right where `mask` [B, T] is False."""

    def __init__(self, subject: Subject, tokens: Tensor, mask: Tensor) -> None:
        self.subject = subject
        self.tokens, self.mask = tokens.to(subject.device), mask.to(subject.device)
        self._before: list[Tensor] = []  # the stream that each layer reads [B, T, D]
        self._after: list[Tensor] = []  # and the one that it returns
        check(self.tokens, subject.vocabulary)
        with ExitStack() as hooks, torch.inference_mode():
            for layer in subject.layers:
                hooks.callback(layer.register_forward_hook(self._keep, with_kwargs=True).remove)
            try:
                result = subject.run(self.tokens, self.mask)
            except (IndexError, RuntimeError) as error:  # a position without an embedding; all else is no user's fault
                if (length := tokens.shape[1]) <= subject.context:
                    raise
                raise UserError(
                    f"{subject.name} cannot run rows of {length} tokens, for it reads {subject.context}: give shorter "
                    "ones."
                ) from error
        self.output = Output(result, self._after[-1])

    def _keep(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        self._before.append((inputs[0] if inputs else named["hidden_states"]).clone())  # a layer may add to it in place
        self._after.append(stream_of(output))

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
            keep = self.subject.layers[-1].register_forward_hook(lambda _, __, output: last.append(stream_of(output)))
            hooks.callback(keep.remove)
            result = self.subject.run(self.tokens, self.mask)
        return Output(result, last[-1])


def refuse_entangled(subject: Subject, tokens: Tensor) -> None:
    """Raise `UserError` where layers that are left out change more than the stream, such as keys that others share.

    `tokens` [B, T]: rows on which the model must do the same when half of its layers hand over what they did before.
    """
    one = Pass(subject, tokens, torch.ones_like(tokens, dtype=torch.bool))
    middle = len(subject.layers) // 2
    cure = "so that none can be changed by itself: read its weights with orchestrator.forensics."
    try:
        again = one.edited(middle, replaced(subject.layers[middle:], [own(layer) for layer in subject.layers[middle:]]))
    except (LookupError, AttributeError, TypeError, ValueError) as error:  # something that the others did not leave
        raise UserError(
            f"{subject.name} does not run on from the stream before layer {middle} alone "
            f"({type(error).__name__}: {one_line(error)}), {cure}"
        ) from error
    if not torch.allclose(again.result, one.output.result, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise UserError(f"{subject.name} hands more than the stream from layer to layer, {cure}")


def stream_of(output: Any) -> Tensor:
    """The residual stream that a layer returns, alone or first in a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
