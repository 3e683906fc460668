"""The policy over coefficients, against a reward whose best coefficients are known."""

from __future__ import annotations

import json
import math

import pytest
import torch

from sidecar.coefficient_policy import CoefficientPolicy

BEST = torch.tensor([0.8, -0.5, 0.0], dtype=torch.float64)


def reward(c: torch.Tensor, shared: float = 0.0) -> float:
    return shared - float((c - BEST).square().sum())


def train(policy: CoefficientPolicy, batches: int, luck: float = 0.0) -> CoefficientPolicy:
    """`luck`: standard deviation of what both episodes of a pair have in common."""
    chance = torch.Generator().manual_seed(7)
    for batch in range(batches):
        noises = [policy.noise(4 * batch + i) for i in range(4)]
        common = (luck * torch.randn(4, generator=chance)).tolist()
        policy.learn(
            noises, [(reward(p, s), reward(m, s)) for s, (p, m) in zip(common, map(policy.pair, noises), strict=True)]
        )
    return policy


@pytest.mark.parametrize("seed", range(10))
def test_it_finds_the_best_coefficients_whatever_both_episodes_share(seed: int) -> None:
    found = train(CoefficientPolicy([0.0] * 3, sigma=0.1, rate=2.0, seed=seed), 100, luck=100.0).mean
    assert torch.allclose(found, BEST, atol=0.1)


def test_a_step_is_the_scaled_mean_over_pairs() -> None:
    policy = CoefficientPolicy([1.0, 2.0], sigma=0.5, rate=0.1, seed=0)
    z = [torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)]
    policy.learn(z, [(3.0, 1.0), (0.0, 4.0)])  # halves 1 and −2
    scale = math.sqrt((1 + 4) / 2)
    assert policy.mean.tolist() == pytest.approx([1 + 0.1 * 0.5 * (1 - 2) / 2 / scale, 2 + 0.1 * 0.5 * 2 / 2 / scale])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_pair_without_a_finite_reward_teaches_nothing(bad: float) -> None:
    policy = CoefficientPolicy([0.0], sigma=0.5, rate=0.1, seed=0)
    policy.learn([policy.noise(0)], [(bad, 1.0)])
    policy.learn([policy.noise(1)], [(1.0, 1.0)])
    assert policy.mean.tolist() == [0.0]


def test_it_goes_on_after_a_restart() -> None:
    whole = train(CoefficientPolicy([0.0] * 3, 0.1, 2.0, 3), 5)
    half = train(CoefficientPolicy([0.0] * 3, 0.1, 2.0, 3), 2)
    other = CoefficientPolicy([9.0] * 3, 0.1, 2.0, 3)
    other.load_state_dict(json.loads(json.dumps(half.state_dict())))
    for batch in range(2, 5):
        noises = [other.noise(4 * batch + i) for i in range(4)]
        other.learn(noises, [(reward(p), reward(m)) for p, m in map(other.pair, noises)])
    assert torch.equal(other.mean, whole.mean)
