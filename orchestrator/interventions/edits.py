"""Edits: what an intervention does to one layer of a model, for as long as a block lasts (SCIENCE §9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.transformer import read_prefix, write_prefix
from orchestrator.config.edits import EditName
from orchestrator.interventions.calibration import Calibration
from orchestrator.interventions.passes import own, replaced
from orchestrator.interventions.subject import Subject

Apply = Callable[[Subject, int, Calibration], AbstractContextManager[None]]
Has = Callable[[Subject, int, Calibration], bool]
F = TypeVar("F", bound=Apply)


@dataclass(frozen=True)
class Edit:
    """One way to change a layer.

    `apply(subject, layer, calibration)` is in force inside its `with` block. `has`, of the same three, is False where
    the layer has nothing to change.
    """

    apply: Apply
    has: Has


MADE: dict[EditName, Edit] = {}


def _always(*_: Any) -> bool:
    return True


def edit(has: Has = _always, name: str | None = None) -> Callable[[F], F]:
    """Add the decorated function as the edit of its own name, or of `name`, which `EditName` lists."""

    def add(apply: F) -> F:
        MADE[EditName[name or apply.__name__]] = Edit(apply, has)
        return apply

    return add


def passing(stream: Tensor, *_: Any, **__: Any) -> Tensor:
    """The forward of a layer that is not there."""
    return stream


@edit()
def delete(subject: Subject, layer: int, _: Calibration, count: int = 1) -> AbstractContextManager[None]:
    """Leave out `count` consecutive layers."""
    return replaced(subject.layers[layer : layer + count], [passing] * count)


@edit()
def delete_compensated(subject: Subject, layer: int, calibration: Calibration) -> AbstractContextManager[None]:
    """Leave the layer out, and scale the stream by the mean factor by which the layer lengthened it."""
    factor, width = calibration.growth[layer], subject.width(layer)

    def scaled(stream: Tensor, *_: Any, **__: Any) -> Tensor:
        return write_prefix(stream, read_prefix(stream, width or stream.shape[-1]) * factor)

    return replaced([subject.layers[layer]], [scaled])


@edit()
def write_mean(subject: Subject, layer: int, calibration: Calibration) -> AbstractContextManager[None]:
    """Add the layer's mean write in place of what it would write."""
    mean = calibration.writes[layer]
    return replaced([subject.layers[layer]], [lambda stream, *_, **__: stream + mean])


@edit()
def repeat(subject: Subject, layer: int, _: Calibration) -> AbstractContextManager[None]:
    """Run the layer twice."""
    once = own(subject.layers[layer])
    return replaced(
        [subject.layers[layer]], [lambda stream, *args, **named: once(once(stream, *args, **named), *args, **named)]
    )


@edit(lambda s, layer, _: layer + 1 < len(s.layers))
def swap(subject: Subject, layer: int, _: Calibration) -> AbstractContextManager[None]:
    """Run the next layer first, each with its own mask and positions."""
    first, second = subject.layers[layer : layer + 2]
    run_first, run_second = own(first), own(second)
    held: list[Any] = []

    def wait(stream: Tensor, *args: Any, **named: Any) -> Tensor:
        held[:] = [args, named]
        return stream

    def both(stream: Tensor, *args: Any, **named: Any) -> Any:
        own_args, own_named = held
        return run_first(run_second(stream, *args, **named), *own_args, **own_named)

    return replaced([first, second], [wait, both])


@contextmanager
def silenced(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block the outputs of the modules are zero."""

    def zero(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(zero).remove)
        yield


@edit(lambda s, layer, _: s.branches[layer].attention is not None)
def delete_attention(subject: Subject, layer: int, _: Calibration) -> AbstractContextManager[None]:
    """Let attention write nothing."""
    module = subject.branches[layer].attention
    assert module is not None
    return silenced([module])


@edit(lambda s, layer, _: len(s.branches[layer].ffn) > 0)
def delete_ffn(subject: Subject, layer: int, _: Calibration) -> AbstractContextManager[None]:
    """Let the FFN, or all experts, write nothing."""
    return silenced(subject.branches[layer].ffn)


@contextmanager
def without_positions(down: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside the block these FFN positions are zero."""

    def zero(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].index_fill(-1, positions.to(inputs[0].device), 0.0), *inputs[1:])

    with ExitStack() as hooks:
        hooks.callback(down.register_forward_pre_hook(zero).remove)
        yield


def _zeroed(which: str) -> Apply:
    """Silence the FFN positions that the layer's calibration has under this name."""

    def apply(subject: Subject, layer: int, calibration: Calibration) -> AbstractContextManager[None]:
        down = subject.branches[layer].down
        assert down is not None
        return without_positions(down, torch.as_tensor(calibration.positions[layer][which]))

    return apply


def _has(which: str) -> Has:
    def has(subject: Subject, layer: int, calibration: Calibration) -> bool:
        of_layer = calibration.positions[layer]
        return subject.branches[layer].down is not None and which in of_layer and len(of_layer[which]) > 0

    return has


zero_saturated, zero_random, zero_as_loud = (
    edit(_has(which), f"zero_{which}")(_zeroed(which)) for which in ("saturated", "random", "as_loud")
)

EDITS: dict[str, Edit] = {name.value: MADE[name] for name in EditName}  # a name without a function is a KeyError
CORE = ("delete", "delete_attention", "delete_ffn")


def block(count: int) -> Edit:
    """Leave out `count` consecutive layers (the unit of the pruning literature)."""
    return Edit(
        lambda subject, layer, calibration: delete(subject, layer, calibration, count),
        lambda subject, layer, _: layer + count <= len(subject.layers),
    )
