"""Problems in which decay acts late: 20 steps ahead less decay looks better, and at the end of the run more is.

Gradient descent on `½(w − a)ᵀH(w − a)` with noise and decay, as one unit of one layer. In the fast directions of H the
weights follow a change of decay within some 10 steps, and held-out loss wants less of it; in the slow ones only decay
forgets, over its memory of 200 steps, and held-out loss wants more of it, by a larger amount.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sidecar import Sidecar

LR, WEIGHT_DECAY, STEPS = 0.1, 0.05, 600
MEMORY = 1 / (LR * WEIGHT_DECAY)  # 200 steps


class Delayed:
    """A run of `STEPS` steps that begins where decay with a multiplier of 1 leads. Subclasses set what follows."""

    curvature: Tensor  # H, [n, n]
    attractor: Tensor  # a, [n]
    heldout_curvature: Tensor  # [n, n]
    wanted: Tensor  # [n], where held-out loss is least
    noise = 0.02

    def __init__(self, seed: int) -> None:
        n = len(self.attractor)
        draw = torch.Generator().manual_seed(seed)
        self.shocks = self.noise * torch.randn(3 * STEPS, n, dtype=torch.float64, generator=draw)
        self.start = torch.linalg.solve(
            self.curvature + WEIGHT_DECAY * torch.eye(n, dtype=torch.float64), self.curvature @ self.attractor
        )
        self.pull = self.curvature @ self.attractor

    def loss(self, weights: Tensor) -> Tensor:
        """Held-out loss of weights [..., n], [...]."""
        off = weights - self.wanted
        return 0.5 * ((off @ self.heldout_curvature) * off).sum(-1)

    def whole_runs(self, log_multipliers: Tensor) -> Tensor:
        """Held-out loss at the end of runs with these constant multipliers, [runs]; without a sidecar."""
        shrink = (1 - LR * WEIGHT_DECAY * log_multipliers.exp())[:, None]
        weights = self.start.expand(len(log_multipliers), -1)
        for shock in self.shocks[:STEPS]:
            weights = shrink * weights - LR * (weights @ self.curvature - self.pull + shock)
        return self.loss(weights)

    def best(self) -> float:
        """The best constant log-multiplier, on a fine grid of whole runs."""
        grid = torch.linspace(-1, 1, 81, dtype=torch.float64)
        return grid[self.whole_runs(grid).argmin()].item()

    def learn(self, seed: int, **settings: Any) -> Sidecar:
        """The sidecar of one run whose decay is learned by forks; they may train beyond its end."""
        return self._run(seed=seed, credit="forks", coefficients={"decay": {"amount": 0.0}}, **settings)[0]

    def play(self, log_multiplier: float) -> Tensor:
        """The weights [n] at the end of a run with a constant multiplier, which a sidecar plays."""
        return self._run(seed=0, mode="replay", coefficients={"decay": {"amount": log_multiplier}})[1]

    def _run(self, **settings: Any) -> tuple[Sidecar, Tensor]:
        model = nn.Module()
        model.layers = nn.ModuleList([nn.Linear(len(self.start), 1, bias=False, dtype=torch.float64)])
        (weight,) = model.parameters()
        weight.data.copy_(self.start[None])
        optimizer = torch.optim.SGD([weight], lr=LR)  # for its empty state: the update is written out below

        @torch.no_grad()
        def train(step: int, count: int) -> None:
            for at in range(step, step + count):
                sidecar.before_step(at)
                move = LR * (weight @ self.curvature - self.pull + self.shocks[at])
                with sidecar.applied(LR):
                    weight.sub_(move)

        forks = {"rollout": train, "bounds": {"decay": (0.1, 8.0)}} if "credit" in settings else {}
        sidecar = Sidecar(
            model, lambda k: self.loss(weight[0]), lr=LR, weight_decay=WEIGHT_DECAY, optimizer=optimizer,
            **forks, **settings,
        )  # fmt: skip
        train(0, STEPS)
        return sidecar, weight[0].detach()


class Quadratic(Delayed):
    """Fast weights of curvature 1, which held-out loss wants larger, and slow ones of 0.02, which it wants smaller."""

    def __init__(self, seed: int) -> None:
        curvature = torch.tensor([1.0] * 4 + [0.02] * 4, dtype=torch.float64)
        self.curvature, self.attractor = curvature.diag(), torch.ones(8, dtype=torch.float64)
        self.heldout_curvature = torch.tensor([3.0] * 4 + [1.0] * 4, dtype=torch.float64).diag()
        self.wanted = torch.tensor([1.1] * 4 + [0.0] * 4, dtype=torch.float64)
        super().__init__(seed)


class Ridge(Delayed):
    """Regression on 16 large features, whose signal is a fifth stronger in held-out rows, and on 96 small ones of none.

    The design is orthogonal: 160 rows with noise, which the slow weights of the small features fit.
    """

    def __init__(self, seed: int, rows: int = 160) -> None:
        draw = torch.Generator().manual_seed(1000 + seed)
        scale = torch.tensor([1.0] * 16 + [0.2] * 96, dtype=torch.float64)
        truth = torch.tensor([1.0] * 16 + [0.0] * 96, dtype=torch.float64)
        x = scale * rows**0.5 * torch.linalg.qr(torch.randn(rows, 112, dtype=torch.float64, generator=draw)).Q
        y = x @ truth + 2.5 * torch.randn(rows, dtype=torch.float64, generator=draw)
        self.curvature = x.T @ x / rows
        self.attractor = torch.linalg.solve(self.curvature, x.T @ y / rows)
        self.heldout_curvature, self.wanted = scale.square().diag(), 1.2 * truth  # of infinitely many rows
        super().__init__(seed)
