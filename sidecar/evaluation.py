"""The held-out loss at the end of an interval, and its derivative by every multiplier."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sidecar import sharded
from sidecar.channels import Channel

Heldout = Callable[[int], Tensor | Iterable[Tensor]]


class WarnOnce:
    """Warns of each problem once."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, problem: str, text: str) -> None:
        if problem not in self._known:
            self._known.add(problem)
            warnings.warn(f"{text}: the sidecar keeps its values and goes on.", RuntimeWarning, stacklevel=5)


class Evaluation:
    """Calls `heldout_loss`. Counts evaluations (`forwards`), and those with a backward pass (`backwards`)."""

    def __init__(
        self, heldout_loss: Heldout, channels: Mapping[str, Channel], parameters: Sequence[Tensor], warn: WarnOnce
    ) -> None:
        self.heldout_loss, self.channels, self.parameters, self.warn = heldout_loss, channels, parameters, warn
        self.forwards = self.backwards = 0

    def measure(self, interval: int, differentiate: bool) -> tuple[float, dict[str, Tensor]]:
        """The held-out loss, and channel → the derivative of the reward by each unit's log-multiplier, [units].

        Where `heldout_loss` fails, it warns and the loss is NaN. A unit without a derivative gets 0.
        """
        zeros = {name: torch.zeros(len(c.units), dtype=torch.float64) for name, c in self.channels.items()}
        sizes = [1, *(len(zero) for zero in zeros.values() if differentiate)]
        try:
            loss, slopes = self._differentiate(interval) if differentiate else (self._loss(interval), {})
            columns = [loss.detach().view(1), *slopes.values()]
            numbers, failed = torch.cat([column.double().to(loss.device) for column in columns]), False
        except Exception as error:  # whatever it is, training goes on
            if any(map(sharded.is_sharded, self.parameters)):
                raise  # the other ranks wait for this one inside the pass that it left
            self.warn("evaluation", f"the held-out evaluation failed ({type(error).__name__}: {error})")
            numbers = torch.full((sum(sizes),), math.nan, dtype=torch.float64, device=self.parameters[0].device)
            failed = True
        value, *found = sharded.all_reduce_mean(numbers).cpu().split(sizes)  # one wait for the device
        if failed:
            return math.nan, zeros
        self.forwards += 1
        self.backwards += differentiate
        if not value.isfinite():
            self.warn("loss", f"the held-out loss is {value.item()}")
        # a unit without a slope is not moved
        slopes = {name: column.nan_to_num(0.0, 0.0, 0.0) for name, column in zip(zeros, found, strict=False)}
        return value.item(), zeros | slopes

    @torch.no_grad()
    def _loss(self, interval: int) -> Tensor:
        return torch.stack(list(self._parts(interval))).sum()

    def _parts(self, interval: int) -> Iterator[Tensor]:
        parts = self.heldout_loss(interval)
        for part in [parts] if isinstance(parts, Tensor) else parts:
            if part.ndim:
                raise ValueError(
                    f"heldout_loss returned a tensor of shape {list(part.shape)}: return a loss without dimensions"
                )
            yield part

    def _differentiate(self, interval: int) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = {name: channel.tensors() for name, channel in self.channels.items()}
        flat = list({id(t): t for tensors in inputs.values() for t in tensors}.values())
        frozen = [t for t in flat if not t.requires_grad]  # gains, whose gradient training does not need
        for tensor in frozen:
            tensor.requires_grad_(True)
        total: list[Tensor] = []
        gradients: list[Tensor | None] = [None] * len(flat)
        try:
            with torch.enable_grad():
                for part in self._parts(interval):
                    total.append(part.detach())
                    for i, g in enumerate(sharded.gradients(part, flat, self.parameters)):
                        known = gradients[i]
                        gradients[i] = g if known is None or g is None else known + g
                    del part
        finally:
            for tensor in frozen:
                tensor.requires_grad_(False)
        by_tensor = {id(t): g for t, g in zip(flat, gradients, strict=True)}
        return torch.stack(total).sum(), {
            name: self.channels[name].slope([by_tensor[id(t)] for t in tensors]) for name, tensors in inputs.items()
        }
