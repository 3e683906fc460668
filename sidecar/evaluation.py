"""The held-out loss at the end of an interval, and its derivative by every multiplier."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sidecar import dropout, sharded
from sidecar.channels import Channel

Heldout = Callable[[int], Tensor | Iterable[Tensor]]


class WarnOnce:
    """Warns of each problem once."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, problem: str, text: str, outcome: str = "the sidecar keeps its values and goes on") -> None:
        if problem not in self._known:
            self._known.add(problem)
            warnings.warn(f"{text}: {outcome}.", RuntimeWarning, stacklevel=5)


class Evaluation:
    """Calls `heldout_loss`. Counts evaluations (`forwards`), and those with a backward pass (`backwards`)."""

    def __init__(
        self, heldout_loss: Heldout, channels: Mapping[str, Channel], model: nn.Module, warn: WarnOnce
    ) -> None:
        self.heldout_loss, self.channels, self.model, self.warn = heldout_loss, channels, model, warn
        self.parameters = list(model.parameters())
        self.forwards = self.backwards = 0

    def measure(self, interval: int, differentiate: bool) -> tuple[float, dict[str, Tensor]]:
        """The held-out loss, and channel → the derivative of the reward by each unit's log-multiplier, [units].

        Where `heldout_loss` fails, it warns and the loss is NaN; where it has never succeeded, the error is raised, or
        `ValueError` for a loss that is not finite. A unit without a derivative gets 0.
        """
        zeros = {name: torch.zeros(len(c.units), dtype=torch.float64) for name, c in self.channels.items()}
        sizes = [1, *(len(zero) for zero in zeros.values() if differentiate)]
        first, failure = not self.forwards, None
        try:
            with dropout.watched(self.model if first else nn.Identity()) as dropping:
                loss, slopes = self._differentiate(interval) if differentiate else (self._loss(interval), {})
            columns = [loss.detach().view(1), *slopes.values()]
            numbers = torch.cat([column.double().to(loss.device) for column in columns])
        except Exception as error:  # whatever it is, training goes on
            if any(map(sharded.is_sharded, self.parameters)):
                raise  # the other ranks wait for this one inside the pass that it left
            if not first:
                self.warn("evaluation", f"the held-out evaluation failed ({type(error).__name__}: {error})")
            numbers = torch.full((sum(sizes),), math.nan, dtype=torch.float64, device=self.parameters[0].device)
            failure, dropping = error, []
        value, *found = sharded.all_reduce_mean(numbers).cpu().split(sizes)  # one wait for the device
        if first:
            self._check_first(value.item(), failure, dropping)
        if failure:
            return math.nan, zeros
        self.forwards += 1
        self.backwards += differentiate
        if not value.isfinite():
            self.warn("loss", f"the held-out loss is {value.item()}")
        # a unit without a slope is not moved
        slopes = {name: column.nan_to_num(0.0, 0.0, 0.0) for name, column in zip(zeros, found, strict=False)}
        return value.item(), zeros | slopes

    def _check_first(self, loss: float, failure: Exception | None, dropping: Sequence[str]) -> None:
        """Raise what makes every evaluation useless from the beginning, before hours are spent."""
        if failure:
            raise failure
        if not math.isfinite(loss):
            raise ValueError(
                f"heldout_loss is {loss} at its first call, so that the sidecar could learn nothing: return a finite "
                "loss of the model on held-out batches."
            )
        if dropping:
            others = f" and {len(dropping) - 1} more" if len(dropping) > 1 else ""
            self.warn(
                "dropout",
                f"the model drops out at random while heldout_loss is called ({dropping[0]}{others} in train mode)",
                "rewards are noisier than need be; call model.eval() in heldout_loss, and model.train() after it",
            )

    @torch.no_grad()
    def _loss(self, interval: int) -> Tensor:
        return torch.stack(list(self._parts(interval))).sum()

    def _parts(self, interval: int) -> Iterator[Tensor]:
        parts = self.heldout_loss(interval)
        if not isinstance(parts, Tensor | Iterable):
            raise ValueError(_no_tensor(parts))
        empty = True
        for part in [parts] if isinstance(parts, Tensor) else parts:
            if not isinstance(part, Tensor):
                raise ValueError(_no_tensor(part))
            if part.ndim:
                raise ValueError(
                    f"heldout_loss returned a tensor of shape {list(part.shape)}: return a loss without dimensions"
                )
            empty = False
            yield part
        if empty:
            raise ValueError("heldout_loss returned no tensor: return the loss, or an iterable of its terms")

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
                    if not part.requires_grad:
                        raise ValueError(
                            "heldout_loss returned a tensor without a graph: return the loss as the model computes it, "
                            "without torch.no_grad(), detach() or item()"
                        )
                    total.append(part.detach())
                    for i, g in enumerate(sharded.gradients(part, flat, self.parameters)):
                        known = gradients[i]
                        gradients[i] = g if known is None or g is None else known + g
                    del part
        finally:
            for tensor in frozen:
                tensor.requires_grad_(False)
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                "heldout_loss depends on none of the parameters that the sidecar acts on: compute it with the model "
                "that the sidecar was given, not with a copy"
            )
        by_tensor = {id(t): g for t, g in zip(flat, gradients, strict=True)}
        return torch.stack(total).sum(), {
            name: self.channels[name].slope([by_tensor[id(t)] for t in tensors]) for name, tensors in inputs.items()
        }


def _no_tensor(value: object) -> str:
    return (
        f"heldout_loss returned a {type(value).__name__}, {str(value)[:40]}: return the loss as a tensor with its "
        "graph, without item() or float()"
    )
