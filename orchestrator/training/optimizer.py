"""AdamW with its decay in a separate step, so that a sidecar can give every tensor its own rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from orchestrator.common.errors import UserError
from orchestrator.config.schema import OptimConfig, Schedule
from orchestrator.experiments.extension import decay_steps
from sidecar.channels import Arithmetic, DecayChannel
from sidecar.channels.decay import DECAY_LIMIT
from sidecar.layer_lr import lr_factors
from sidecar.sharded import shard_like

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, by torch's names


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of the update that takes the run from `step` to `step + 1`, of `steps`.

    Linear warm-up, then one of: `lr` to the end; a cosine to `min_lr_ratio`; a plateau that falls linearly over the
    last `decay_fraction` of the run (warm-up, stable, decay).
    """
    warmup = min(config.warmup_steps, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == Schedule.constant:
        return config.lr
    if config.schedule == Schedule.cosine:
        progress = (step - warmup) / max(1, steps - warmup)
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = min(1.0, (steps - step) / decay_steps(config, steps))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


class Adam:
    """torch's fused Adam without decay, in its functional form, with `state` and `param_groups` as a torch optimizer.

    `factors`: of the learning rate, of parameters for which it is not 1. `torch.optim.Optimizer` loads torch's
    compiler, which takes longer than all else before a run's first step.
    """

    def __init__(
        self, parameters: Iterable[Tensor], config: OptimConfig, factors: Mapping[Tensor, float] | None = None
    ) -> None:
        self.parameters = list(parameters)
        self.beta1, self.beta2, self.eps = config.beta1, config.beta2, config.eps
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        groups: dict[float, list[Tensor]] = {}
        for parameter in self.parameters:
            groups.setdefault((factors or {}).get(parameter, 1.0), []).append(parameter)
        self.param_groups: list[dict[str, Any]] = [
            {"params": group, "factor": factor, "weight_decay": 0.0} for factor, group in groups.items()
        ]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step with every parameter that has a gradient, at learning rate `lr` times the group's factor."""
        for group in self.param_groups:
            self._step(group["params"], lr * group["factor"])

    def _step(self, parameters: Sequence[Tensor], lr: float) -> None:
        given = {p: p.grad for p in parameters if p.grad is not None}
        for p in given:
            if p not in self.state:
                self.state[p] = {"step": _steps(0, p), **{moment: torch.zeros_like(p) for moment in MOMENTS}}
        steps, first, second = ([self.state[p][name] for p in given] for name in ("step", *MOMENTS))
        adam(
            [*given], [*given.values()], first, second, [], steps, fused=True, amsgrad=False, maximize=False,
            beta1=self.beta1, beta2=self.beta2, lr=lr, weight_decay=0.0, eps=self.eps,
        )  # fmt: skip

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _steps(count: int, parameter: Tensor) -> Tensor:
    return torch.tensor(float(count), device=parameter.device)  # where the fused kernel reads it


def layer_rates(config: OptimConfig, model: nn.Module) -> dict[str, float]:
    """Parameter → factor of its learning rate, by `optim.layer_lr`; empty where that is.

    Raises `UserError` for a formula that the model does not have, and for rates at which decay is not safe.
    """
    written = f"optim.layer_lr={dict(config.layer_lr)}"
    try:
        factors = lr_factors(config.layer_lr, model)
    except ValueError as error:
        raise UserError(f"{written}: {error}") from error
    largest = max(factors.values(), default=1.0)
    if not config.lr * largest * config.weight_decay < DECAY_LIMIT:
        raise UserError(
            f"{written} raises optim.lr={config.lr:g} to {config.lr * largest:.3g}, at which "
            f"optim.weight_decay={config.weight_decay:g} would shrink a weight by a tenth or more per step: lower the "
            "coefficients, optim.lr or optim.weight_decay."
        )
    return factors


class DecoupledAdamW:
    """Adam without decay, enclosed by the decay of `optim.decay`; `decoupled` is torch's fused AdamW, bit for bit.

    Matrices and embeddings decay; norm scales (one dimension) do not. `optim.layer_lr` scales step and decay, as a
    learning rate for every parameter group does.
    """

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self.named = dict(model.named_parameters())
        self.decayed = [name for name, parameter in self.named.items() if parameter.ndim >= 2]
        factors = layer_rates(config, model)
        arithmetic = Arithmetic(config.lr, config.weight_decay, decay=config.decay, lr_factors=factors)
        self.decay = DecayChannel(model, arithmetic)
        self.adam = Adam(self.named.values(), config, {self.named[name]: factor for name, factor in factors.items()})

    def step(self, lr: float, applied: Callable[[float], AbstractContextManager[None]] | None = None) -> None:
        """Decay and Adam's step, both at learning rate `lr`; a sidecar's `applied` replaces the decay."""
        with (applied or self._decaying)(lr):
            self.adam.step(lr)

    @contextmanager
    def _decaying(self, lr: float) -> Iterator[None]:
        self.decay.before_update(lr)
        yield
        self.decay.after_update()

    def zero_grad(self) -> None:
        self.adam.zero_grad()

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
            self.adam.state[parameter] = {"step": _steps(step, parameter), **moments}
