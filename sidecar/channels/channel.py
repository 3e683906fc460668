"""The base of all channels: a channel has units, whose multipliers act on the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sidecar.sharded import gather, shard_like
from sidecar.units import Unit


@dataclass(frozen=True)
class Arithmetic:
    """The highest values of the run, against which channels check the bounds of their multipliers."""

    lr: float
    weight_decay: float
    eps: float = 1e-8  # Adam's
    beta2: float = 0.999  # Adam's
    lr_max: float = 0.02  # the largest learning rate that any layer may reach
    decay: str = "decoupled"  # a name in `DECAYS`: the way to decay
    lr_factors: Mapping[str, float] = field(default_factory=dict)  # parameter → factor of the learning rate, if not 1

    @property
    def highest_lr(self) -> float:
        """The highest learning rate of any parameter."""
        return self.lr * max([1.0, *self.lr_factors.values()])


class Channel(ABC):
    """A named list of units whose multipliers act on the model. Subclasses define the units and the action.

    Where every multiplier is 1 the model trains bit for bit as without the channel. Whatever a channel accumulates
    between two calls of `set` is in `memory`: a run may stop and resume between them.
    """

    name: str
    bounds: tuple[float, float]  # default range of the multipliers
    units: list[Unit]

    @abstractmethod
    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None: ...

    @abstractmethod
    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        """Raise `ValueError` where a multiplier as large as `largest` is not safe."""

    @abstractmethod
    def set(self, multipliers: Sequence[float]) -> None:
        """Act with these multipliers, one per unit, from now on."""

    @abstractmethod
    def weights(self) -> list[list[str]]:
        """Names of the parameters that each unit governs."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The tensors whose gradients `slope` needs."""

    @abstractmethod
    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """[units]: the derivative of −held-out loss by each log-multiplier, through its effect since the last `set`.

        Where `follow` was called with `carried`: through its effect since then.
        `gradients`: of the held-out loss by each of `tensors`; None counts as zero.
        """

    def follow(self, *, carried: bool = False) -> None:
        """Start to accumulate what `slope` needs to know of the steps since the last `set`; `carried`: since now."""

    def memory(self) -> dict[str, Tensor]:
        """Whatever the channel carries from step to step, name → tensor: a restart continues from it bit for bit.

        The names are the same from construction on, after `follow`; values may change.
        """
        return {}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Restore what `memory` returned."""

    def folded(self) -> dict[str, Tensor]:
        """Parameter → its value times its multiplier, where the channel acts in the forward pass."""
        return {}

    def before_update(self, lr: float) -> None:
        """Called before every optimizer step, at learning rate `lr`."""

    def after_update(self) -> None:
        """Called after every optimizer step."""

    def close(self) -> None:
        """Remove the channel's hooks from the model."""


class TracedChannel(Channel):
    """A channel whose units are groups of parameters, with a trace of each parameter for `slope` while followed."""

    def _act_on(self, groups: Sequence[Sequence[tuple[str, Tensor]]]) -> None:
        """Name the parameters of every unit. Multipliers are 1 and nothing is followed yet."""
        self._names = [[name for name, _ in group] for group in groups]
        self._params = [param for group in groups for _, param in group]
        self._multipliers = [1.0] * len(groups)
        self._traces: list[Tensor] = []  # one per parameter while followed; else empty
        self._carried = False  # True: `set` does not reset them

    def set(self, multipliers: Sequence[float]) -> None:
        self._multipliers = list(multipliers)
        if self._traces and not self._carried:
            self.follow()

    def weights(self) -> list[list[str]]:
        return self._names

    def tensors(self) -> list[Tensor]:
        return self._params

    def follow(self, *, carried: bool = False) -> None:
        self._carried = carried
        self._traces = [param.new_zeros(param.shape) for param in self._params]  # on `meta`, zeros_like loads sympy

    def memory(self) -> dict[str, Tensor]:
        names = (name for group in self._names for name in group)
        return dict(zip(names, self._traces, strict=False))

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        for name, trace in self.memory().items():
            trace.copy_(shard_like(memory[name], trace))


def alike(*tensors: Tensor) -> bool:
    """True where all have the same shape, precision and device."""
    return len({(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}) == 1


def inner_products(a: Sequence[Tensor | None], b: Sequence[Tensor]) -> Tensor:
    """[n], the inner product of each pair; 0 where there is no gradient, or the tensor was replaced."""
    products = []
    for x, y in zip(a, b, strict=True):
        if x is None or not alike(x, y):
            products.append(torch.zeros((), device=y.device))
        else:
            products.append(gather((x.detach() * y.detach()).sum(dtype=torch.float32)))
    return torch.stack(products)
