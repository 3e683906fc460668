"""A model, a sidecar on it and a training loop around both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidecar import Sidecar

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.randn(6, 1, generator=torch.Generator().manual_seed(1))).tanh()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.o_proj = nn.Linear(6, 6)
        self.mlp.down_proj = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn.o_proj(x).tanh()
        return x + self.mlp.down_proj(x).tanh()


class Model(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(Layer() for _ in range(layers))
            self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def heldout_of(model: nn.Module) -> Callable[[int], Tensor]:
    return lambda interval: F.mse_loss(model(X[32:]), Y[32:])


def make(model: nn.Module | None = None, heldout: Callable[[int], Any] | None = None, **settings: Any) -> Sidecar:
    model = Model() if model is None else model
    defaults = {"lr": 1e-2, "weight_decay": 0.5, "seed": 0, "interval": 5, "warmup": 0}
    return Sidecar(model, heldout or heldout_of(model), **defaults | settings)


class Loop:
    """A user's training loop around a sidecar."""

    def __init__(self, heldout: Callable[[int], Any] | None = None, **settings: Any) -> None:
        self.model = Model()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        if "momentum_alignment" in settings.get("features", ()):
            settings["optimizer"] = self.optimizer
        if "progress" in settings.get("features", ()):
            settings |= {"steps": 31, "warmup": 2}
        self.sidecar = make(self.model, heldout, **settings)
        self.step = 0
        self.decided: list[Any] = []

    def run(self, steps: int) -> Loop:
        for _ in range(steps):
            if self.sidecar.before_step(self.step):
                self.decided.append(self.sidecar.record())
            self.optimizer.zero_grad()
            F.mse_loss(self.model(X[:32]), Y[:32]).backward()
            with self.sidecar.applied(1e-2):
                self.optimizer.step()
            self.step += 1
        return self

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


ALL = ("decay", "lr_scale", "residual_gain")  # channels
