"""A long look ahead learns the late effect of decay, and a look of 20 steps misses it, at every seed.

`pytest -s` prints what was learned beside the best value.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from delayed import MEMORY, Delayed, Quadratic, Ridge

from orchestrator.config.schema import SearchConfig, SearchMethod
from orchestrator.search.reinforce import ends, proposal

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
def test_a_search_over_whole_runs_finds_the_best_decay_at_every_seed(problem: type[Delayed]) -> None:
    """With the search's own defaults: a screen, a line, twelve pairs, and the mean, which is the last trial."""
    space = {"sidecar.coefficients.decay.amount": "uniform(-1, 1)"}
    found = []
    for seed in SEEDS:
        task, best = made(problem, seed)
        search = SearchConfig(space=space, method=SearchMethod.reinforce, trials=37, lengths=[1.0], seed=seed)
        tried: list[float] = []
        losses: list[float] = []
        for end in ends(search):
            tried += [proposal(search, number, losses).item() for number in range(len(tried), end)]
            losses += task.whole_runs(torch.tensor(tried[len(losses) :], dtype=torch.float64)).tolist()
        found.append((tried[-1], best))
    print(f"\n{problem.__name__}, over whole runs: " + ", ".join(f"{mean:.2f} ({best:.2f})" for mean, best in found))
    assert [mean for mean, _ in found] == pytest.approx([best for _, best in found], abs=0.15)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_grids_runs_are_those_of_a_sidecar_that_plays_them(problem: type[Delayed]) -> None:
    task = problem(0)
    (loss,) = task.whole_runs(torch.tensor([0.37], dtype=torch.float64))
    assert task.loss(task.play(0.37)).item() == pytest.approx(loss.item(), rel=1e-9)
