"""The base of all channels: units, and how their multipliers act on a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidecar.sharded import gather
from sidecar.units import Unit


@dataclass(frozen=True)
class Arithmetic:
    """The highest values of the run, with which channels check the bounds of their multipliers."""

    lr: float
    weight_decay: float
    eps: float = 1e-8  # Adam's
    beta2: float = 0.999  # Adam's
    lr_max: float = 0.02  # the largest learning rate that any layer may reach


class Channel(ABC):
    """A named list of units, and how their multipliers act on the model. A subclass defines both."""

    name: str
    bounds: tuple[float, float]  # default range of the multipliers
    units: list[Unit]

    @abstractmethod
    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None: ...

    @abstractmethod
    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        """Raise `ValueError` where a multiplier of `largest` would not be safe."""

    @abstractmethod
    def set(self, multipliers: Sequence[float]) -> None:
        """Apply these multipliers, one per unit, from now on."""

    @abstractmethod
    def weights(self) -> list[list[str]]:
        """Names of the parameters that each unit governs."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The tensors by which the held-out loss is differentiated for `slope`."""

    @abstractmethod
    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """[units]: the derivative of `−held-out loss` by each log-multiplier, through its effect since the last `set`.

        `gradients`: of the held-out loss by `tensors`; None counts as zero.
        """

    def follow(self) -> None:
        """From now on, accumulate the trace of the steps since the last `set` that `slope` needs."""

    def memory(self) -> dict[str, Tensor]:
        """The trace, for a restart."""
        return {}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Restore what `memory` returned."""

    def folded(self) -> dict[str, Tensor]:
        """Parameter → its value times the multiplier, where the forward pass depends on the latter."""
        return {}

    def before_update(self, lr: float) -> None:
        """Called before every optimizer step."""

    def after_update(self) -> None:
        """Called after every optimizer step."""

    def close(self) -> None:
        """Remove the channel's hooks from the model."""


def alike(*tensors: Tensor) -> bool:
    return len({(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}) == 1


def inner_products(a: Sequence[Tensor | None], b: Sequence[Tensor]) -> Tensor:
    """[n], the inner product of every pair; 0 where there is no gradient or no tensor left."""
    zero = torch.zeros(())
    return torch.stack(
        [
            zero.to(y.device)
            if x is None or not alike(x, y)
            else gather(torch.sum(x.detach() * y.detach(), dtype=torch.float32))
            for x, y in zip(a, b, strict=True)
        ]
    )
