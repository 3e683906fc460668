"""What every channel is and does: units, and how their multipliers act on a model."""

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
    """What the bounds of multipliers are checked against: the highest values of the run."""

    lr: float
    weight_decay: float
    eps: float = 1e-8  # Adam's
    beta2: float = 0.999  # Adam's
    lr_max: float = 0.02  # the largest learning rate that any layer may reach


class Channel(ABC):
    """A named list of units, and how their multipliers act on the model; a subclass is made of both."""

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
        """Put these multipliers, one per unit, in force."""

    @abstractmethod
    def weights(self) -> list[list[str]]:
        """Names of the parameters that each unit governs."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What the held-out loss must be differentiated by for `slope`."""

    @abstractmethod
    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """[units], from the gradients of `tensors` (None counts as zero): the credit of every unit.

        The derivative of `−held-out loss` by its log-multiplier, through what it did since the last `set`.
        """

    def follow(self) -> None:
        """Keep, from here on, what `slope` needs of the steps since the last `set`."""

    def memory(self) -> dict[str, Tensor]:
        """What was kept, for a restart."""
        return {}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Take back what `memory` returned."""

    def folded(self) -> dict[str, Tensor]:
        """Parameter → its value with the multiplier worked in, where the forward pass depends on it."""
        return {}

    def before_update(self, lr: float) -> None:
        """Called before every optimizer step."""

    def after_update(self) -> None:
        """Called after every optimizer step."""

    def close(self) -> None:
        """Take off the model what was put on it."""


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
