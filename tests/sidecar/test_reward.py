"""Advantages against a weighted mean and deviation computed from the whole history."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sidecar.reward import Reward

LOSSES = [5.0, 4.2, 3.9, 4.0, 3.5, 3.4, 3.38, 3.1]


def test_advantages_equal_numpys_over_the_whole_history() -> None:
    decay, reward = 0.8, Reward(0.8)
    judged = [reward.observe(loss) for loss in LOSSES]
    assert judged[0] is None
    falls = -np.diff(LOSSES)
    assert judged[1].advantage == 0.0
    for n in range(1, len(falls)):
        weights = decay ** np.arange(n, -1, -1)
        baseline = np.average(falls[:n], weights=weights[1:])
        mean = np.average(falls[: n + 1], weights=weights)
        deviation = math.sqrt(np.average((falls[: n + 1] - mean) ** 2, weights=weights))
        got = judged[n + 1]
        assert got.reward == pytest.approx(falls[n], rel=1e-12)
        assert got.baseline == pytest.approx(baseline, rel=1e-12)
        assert got.advantage == pytest.approx((falls[n] - baseline) / deviation, rel=1e-9)


def test_a_wild_reward_has_a_bounded_advantage() -> None:
    reward = Reward(0.9)
    for loss in [3.0, 2.9, 2.81, 2.7, 2.62, 2.5, 1e9]:
        judged = reward.observe(loss)
    assert -1 / math.sqrt(0.9 * 0.1) <= judged.advantage < -1


def test_equal_rewards_have_no_advantage() -> None:
    reward = Reward(0.9)
    assert [j.advantage for j in map(reward.observe, [3.0, 2.5, 2.0, 1.5]) if j] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_leaves_no_mark(bad: float) -> None:
    clean, spoilt = Reward(0.9), Reward(0.9)
    for loss in [3.0, 2.5, 2.4]:
        clean.observe(loss)
        spoilt.observe(loss)
    assert spoilt.observe(bad) is None
    assert spoilt.observe(bad) is None
    json.dumps(spoilt.state_dict(), allow_nan=False)
    assert spoilt.observe(2.4) is None  # its interval began at an unknown loss
    assert spoilt.observe(2.1) == clean.observe(2.1)


def test_an_interval_may_begin_on_other_batches_than_the_last_one_ended_on() -> None:
    reward = Reward(0.9)
    reward.begin(5.0)
    first = reward.observe(4.5)
    reward.begin(2.0)
    second = reward.observe(1.8)
    assert first is not None
    assert first.reward == 0.5
    assert second is not None
    assert second.reward == pytest.approx(0.2)
    reward.begin(math.nan)
    assert reward.observe(0.9) is None


def test_advantages_keep_their_size_along_a_learning_curve() -> None:
    """From 5.6 nats through a fast fall to a slow one with noise: late surprises count as much as early ones."""
    steps, noise = np.arange(51), 0.01 * np.random.default_rng(0).standard_normal(51)
    curve = 1.8 + 12.8 / np.sqrt(40 * steps + 20) + noise
    for warmup, late in ((0, False), (3, True)):
        reward = Reward(0.8, warmup)
        judged = [reward.observe(loss) for loss in curve]
        assert judged[: warmup + 1] == [None] * (warmup + 1)
        advantages = np.array([j.advantage for j in judged if j])
        assert (np.sqrt(np.mean(advantages[12:27] ** 2)) > 0.7) == late
    resumed = Reward(0.8, 3)
    resumed.observe(5.0)
    resumed.observe(4.0)
    other = Reward(0.8, 3)
    other.load_state_dict(json.loads(json.dumps(resumed.state_dict())))
    assert [other.observe(x) for x in (3.0, 2.0, 1.5)] == [resumed.observe(x) for x in (3.0, 2.0, 1.5)]
