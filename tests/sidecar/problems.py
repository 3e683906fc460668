"""Problems whose best multipliers are known: a bandit, a noisy quadratic, ridge regression."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from sidecar import Sidecar

Each = Callable[[int, Sidecar], None]


def layered(*groups: int) -> nn.Module:
    """`layers.<i>.weight` [1, groups[i]], zeros: one decay unit each."""
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(width, 1, bias=False, dtype=torch.float64) for width in groups)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


class Bandit:
    """Gains of 2 layers × 2 branches; held-out loss rises every step by their squared distance from the best."""

    best = (0.5, -0.4, -0.2, 0.3)  # log-multipliers

    def __init__(self, seed: int, noise: float = 0.3) -> None:
        self.model = nn.Module()
        self.model.layers = nn.ModuleList()
        for _ in range(2):
            layer = nn.Module()
            layer.self_attn, layer.mlp = nn.Module(), nn.Module()
            layer.self_attn.o_proj = nn.Linear(1, 1, bias=False)
            layer.mlp.down_proj = nn.Linear(1, 1, bias=False)
            self.model.layers.append(layer)
        self.writers = [w for layer in self.model.layers for w in (layer.self_attn.o_proj, layer.mlp.down_proj)]
        for writer in self.writers:
            nn.init.ones_(writer.weight)
        self.generator, self.noise = torch.Generator().manual_seed(seed), noise
        self.paid = 0.0

    def heldout_loss(self, interval: int = 0) -> Tensor:
        gains = torch.cat([writer(torch.ones(1)) for writer in self.writers])
        cost = (gains.log() - torch.tensor(self.best)).square().sum()
        self.paid += cost.item() + self.noise * torch.randn((), generator=self.generator).item()
        return cost + (self.paid - cost.item())

    def error(self, log_multipliers: list[float]) -> float:
        """Root mean square distance from the best log-multipliers."""
        return math.dist(log_multipliers, self.best) / 2

    def run(self, steps: int, each: Each = lambda step, sidecar: None, **settings: Any) -> Sidecar:
        sidecar = Sidecar(
            self.model, self.heldout_loss, lr=1e-3, weight_decay=0.0, channels=["residual_gain"],
            bounds={"residual_gain": (0.25, 2.0)}, **settings,
        )  # fmt: skip
        for step in range(steps):
            sidecar.before_step(step)
            each(step, sidecar)
        return sidecar


class Descent:
    """Noisy gradient descent on a loss of `layered` weights, with decay; subclasses give its gradient and the held-out
    loss. Weights settle within a few intervals only at a large learning rate: it is the largest that the bound allows.
    """

    lr, weight_decay, bounds = 0.1, 0.1, (0.01, 9.0)
    model: nn.Module
    noise = 0.0

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters = list(self.model.parameters())

    def weights(self) -> Tensor:
        return torch.cat([w.flatten() for w in self.parameters])

    def gradient(self, weights: Tensor) -> Tensor:
        """The training loss's gradient at these weights, both flat."""
        raise NotImplementedError

    def heldout_loss(self, interval: int = 0) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def update(self, sidecar: Sidecar) -> None:
        weights = self.weights()
        noise = self.noise * torch.randn(len(weights), dtype=torch.float64, generator=self.generator)
        steps = (self.lr * (self.gradient(weights) + noise)).split([w.numel() for w in self.parameters])
        with sidecar.applied(self.lr):
            for parameter, step in zip(self.parameters, steps, strict=True):
                parameter -= step

    def run(self, steps: int, each: Each = lambda step, sidecar: None, **settings: Any) -> Sidecar:
        sidecar = Sidecar(
            self.model, self.heldout_loss, lr=self.lr, weight_decay=self.weight_decay,
            bounds={"decay": self.bounds}, **settings,
        )  # fmt: skip
        for step in range(steps):
            sidecar.before_step(step)
            each(step, sidecar)
            self.update(sidecar)
        return sidecar


class Quadratic(Descent):
    """Every weight is drawn to 1 with curvature h; held-out loss wants it at `wanted`.

    The mean weight settles at h/(h + λ·m), so the best multiplier is h·(1/wanted − 1)/λ.
    """

    curvature = 0.5
    wanted = (0.9, 0.7, 0.5, 0.8)
    noise = 0.035

    def __init__(self, seed: int) -> None:
        self.model = layered(*[16] * len(self.wanted))
        super().__init__(seed)

    @property
    def best(self) -> list[float]:
        return [math.log(self.curvature * (1 / wanted - 1) / self.weight_decay) for wanted in self.wanted]

    def error(self, log_multipliers: list[float]) -> float:
        return math.dist(log_multipliers, self.best) / 2

    def gradient(self, weights: Tensor) -> Tensor:
        return self.curvature * (weights - 1)

    def heldout_loss(self, interval: int = 0) -> Tensor:
        pairs = zip(self.model.parameters(), self.wanted, strict=True)
        return torch.stack([0.5 * (w - wanted).square().mean() for w, wanted in pairs]).sum()


class Ridge(Descent):
    """Regression on groups of features of which some carry signal and some noise; 40 rows, 32 features.

    With decay the weights settle at (XᵀX/n + λ·diag(m))⁻¹Xᵀy/n, whose held-out loss scipy minimises over m.
    """

    groups = (8, 8, 8, 8)
    signal = (1.0, 0.5, 0.2, 0.0)
    noise = 0.014

    def __init__(self, seed: int, rows: int = 40, heldout_rows: int = 400) -> None:
        draw = torch.Generator().manual_seed(1000 + seed)
        total = sum(self.groups)
        truth = torch.cat(
            [
                s * torch.randn(g, generator=draw, dtype=torch.float64)
                for s, g in zip(self.signal, self.groups, strict=True)
            ]
        )
        x = torch.randn(rows + heldout_rows, total, generator=draw, dtype=torch.float64)
        y = x @ truth + 2.0 * torch.randn(len(x), generator=draw, dtype=torch.float64)
        self.x, self.y, self.heldout_x, self.heldout_y = x[:rows], y[:rows], x[rows:], y[rows:]
        self.model = layered(*self.groups)
        super().__init__(seed)

    def gradient(self, weights: Tensor) -> Tensor:
        return self.x.T @ (self.x @ weights - self.y) / len(self.x)

    def heldout_loss(self, interval: int = 0) -> Tensor:
        return 0.5 * (self.heldout_x @ self.weights() - self.heldout_y).square().mean()

    def settled_loss(self, log_multipliers: list[float]) -> float:
        """Held-out loss of the weights that these multipliers lead to."""
        decay = torch.cat(
            [
                torch.full((g,), self.weight_decay * math.exp(x), dtype=torch.float64)
                for g, x in zip(self.groups, log_multipliers, strict=True)
            ]
        )
        n = len(self.x)
        weights = torch.linalg.solve(self.x.T @ self.x / n + decay.diag(), self.x.T @ self.y / n)
        return 0.5 * (self.heldout_x @ weights - self.heldout_y).square().mean().item()

    @cached_property
    def best_loss(self) -> float:
        bounds = [tuple(map(math.log, self.bounds))] * len(self.groups)
        return float(minimize(self.settled_loss, [0.0] * len(self.groups), bounds=bounds).fun)

    def error(self, log_multipliers: list[float]) -> float:
        """Share of the gap between one decay for all and the best ones that is left open."""
        best = self.best_loss
        return (self.settled_loss(log_multipliers) - best) / (self.global_loss - best)

    @cached_property
    def global_loss(self) -> float:
        return self.settled_loss([0.0] * len(self.groups))


def means(sidecar: Sidecar, channel: str) -> list[float]:
    """The policy's mean log-multipliers, within their limits."""
    learner = sidecar.source.learners[channel]
    mean = learner.policy.mean(learner.policy.theta, learner.drawn["features"])
    return mean.clamp(*learner.limits).tolist()


def first_within(errors: list[float], tolerance: float) -> int:
    """The first index from which on every error is within `tolerance`; the length where the last is not."""
    outside = [index for index, error in enumerate(errors) if not error <= tolerance]
    return outside[-1] + 1 if outside else 0
