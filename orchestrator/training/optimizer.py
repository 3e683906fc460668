"""AdamW with its decay in a separate step, so that a sidecar can give every tensor its own rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from orchestrator.config.schema import OptimConfig, Schedule
from sidecar.sharded import local_shard, shard_like

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, by torch's names


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of the update that takes the run from `step` to `step + 1`, of `steps`.

    Linear warm-up, then either a cosine to `min_lr_ratio` or a plateau that falls linearly over the last
    `decay_fraction` of the run (warm-up, stable, decay).
    """
    warmup = min(config.warmup_steps, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == Schedule.cosine:
        progress = (step - warmup) / max(1, steps - warmup)
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        decay = max(1, round(config.decay_fraction * steps))
        share = min(1.0, (steps - step) / decay)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


class DecoupledAdamW:
    """Adam without decay, preceded by `w ← (1 − lr·λ)·w` in one foreach call: torch's AdamW, bit for bit.

    Matrices and embeddings decay; norm scales (one dimension) do not.
    """

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self.named = dict(model.named_parameters())
        self.weight_decay = config.weight_decay
        self.decayed = [name for name, parameter in self.named.items() if parameter.ndim >= 2]
        betas = (config.beta1, config.beta2)
        self.adam = torch.optim.Adam(self.named.values(), lr=config.lr, betas=betas, eps=config.eps, fused=True)

    def step(self, lr: float, applied: Callable[[float], AbstractContextManager[None]] | None = None) -> None:
        """Decay, then Adam's step, both at learning rate `lr`; a sidecar's `applied` replaces the decay."""
        for group in self.adam.param_groups:
            group["lr"] = lr
        with (applied or self._decay_first)(lr):
            self.adam.step()

    @contextmanager
    def _decay_first(self, lr: float) -> Iterator[None]:
        with torch.no_grad():
            torch._foreach_mul_([local_shard(self.named[name]) for name in self.decayed], 1 - lr * self.weight_decay)
        yield

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The moments as `<parameter>.exp_avg` and `<parameter>.exp_avg_sq`; empty before the first step."""
        return {
            f"{name}.{moment}": self.adam.state[parameter][moment]
            for name, parameter in self.named.items()
            if parameter in self.adam.state
            for moment in MOMENTS
        }

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Restore the moments that were saved after `step` updates."""
        if not tensors:
            return
        for name, parameter in self.named.items():
            moments = {m: shard_like(tensors[f"{name}.{m}"], parameter) for m in MOMENTS}
            # the fused kernel reads the step where the parameter is
            self.adam.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **moments}
