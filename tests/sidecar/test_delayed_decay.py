"""A long look ahead learns the late effect of decay, and a look of 20 steps misses it, at every seed.

`pytest -s` prints what was learned beside the best value.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from delayed import MEMORY, Delayed, Quadratic, Ridge

from sidecar.coefficient_policy import CoefficientPolicy

SEEDS = range(10)
PROBLEMS = (Quadratic, Ridge)


@cache
def made(problem: type[Delayed], seed: int) -> tuple[Delayed, float]:
    """Return a problem, and its best log-multiplier on a fine grid of whole runs."""
    task = problem(seed)
    return task, task.best()


def amounts(problem: type[Delayed], horizon: float, interval: int) -> list[tuple[float, float]]:
    """Return for every seed the log-multiplier that one run learned, and the best."""
    found = []
    for seed in SEEDS:
        task, best = made(problem, seed)
        sidecar = task.learn(seed, horizon=horizon, interval=interval, sigma=0.2, policy_lr=2.0, pairs=2)
        found.append((sidecar.record()["coefficients"]["decay"]["amount"], best))
    learned = ", ".join(f"{learned:.2f} ({best:.2f})" for learned, best in found)
    print(f"\n{problem.__name__}, {horizon * MEMORY:.0f} steps ahead: {learned}")
    return found


@pytest.mark.statistical
@pytest.mark.parametrize("problem", PROBLEMS)
def test_forks_of_one_and_a_half_memories_find_the_best_decay_at_every_seed(problem: type[Delayed]) -> None:
    for learned, best in amounts(problem, 1.5, 60):
        assert learned == pytest.approx(best, abs=0.2)
        assert best > 0.35


@pytest.mark.statistical
@pytest.mark.parametrize("problem", PROBLEMS)
def test_forks_of_20_steps_end_on_the_wrong_side_at_every_seed(problem: type[Delayed]) -> None:
    for learned, best in amounts(problem, 20 / MEMORY, 30):
        assert learned < -0.1
        assert best > 0.35


@pytest.mark.statistical
@pytest.mark.parametrize("problem", PROBLEMS)
def test_episodes_of_whole_runs_find_the_best_decay_at_every_seed(problem: type[Delayed]) -> None:
    for seed in SEEDS:
        task, best = made(problem, seed)
        policy = CoefficientPolicy([0.0], sigma=0.2, rate=1.0, seed=seed)
        for batch in range(16):
            noises = [policy.noise(4 * batch + i) for i in range(4)]
            losses = task.whole_runs(torch.cat([c for noise in noises for c in policy.pair(noise)])).view(4, 2)
            policy.learn(noises, [(plus, minus) for plus, minus in (-losses).tolist()])
        assert policy.mean.item() == pytest.approx(best, abs=0.15)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_grids_runs_are_those_of_a_sidecar_that_plays_them(problem: type[Delayed]) -> None:
    task = problem(0)
    (loss,) = task.whole_runs(torch.tensor([0.37], dtype=torch.float64))
    assert task.loss(task.play(0.37)).item() == pytest.approx(loss.item(), rel=1e-9)
