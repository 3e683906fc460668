"""The policy's step and projections against autograd, closed forms and scipy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from sidecar.credit import Step
from sidecar.policy import MEANS, SIGMA_RANGE, GaussianPolicy, bounded, mean_matched, mean_matched_slopes

FREE = (-100.0, 100.0)
FEATURES = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
SIZES = torch.tensor([4.0, 12.0, 4.0, 12.0, 4.0, 64.0], dtype=torch.float64)


def policy(kind: str = "linear", sigma: float = 0.3, seed: int = 0) -> GaussianPolicy:
    made = GaussianPolicy(kind, FEATURES.shape[1], sigma, seed, "decay")
    made.theta = made.theta + torch.linspace(-0.5, 0.5, len(made.theta), dtype=torch.float64)
    return made


@pytest.mark.parametrize("kind", MEANS)
def test_every_policy_starts_at_a_multiplier_of_one(kind: str) -> None:
    made = GaussianPolicy(kind, 4, 0.3, 0, "decay")
    assert torch.equal(made.mean(made.theta, FEATURES), torch.zeros(12, dtype=torch.float64))


@pytest.mark.parametrize("kind", MEANS)
def test_update_is_the_natural_gradient_of_reward_and_entropy(kind: str) -> None:
    """REINFORCE's gradient by autograd, through the Fisher information of autograd's own score."""
    made, advantage, lr, entropy = policy(kind), 1.7, 1e-4, 0.2
    sample, noise = made.sample(FEATURES)
    theta = made.theta.clone().requires_grad_()
    log_sigma = torch.tensor(made.log_sigma, dtype=torch.float64, requires_grad=True)
    density = torch.distributions.Normal(made.mean(theta, FEATURES), log_sigma.exp())
    (advantage * density.log_prob(sample).sum() + entropy * density.entropy().sum()).backward()
    jacobian = torch.autograd.functional.jacobian(lambda t: made.mean(t, FEATURES), made.theta)
    fisher = (jacobian.T @ jacobian / made.sigma**2).numpy()
    # sqrt of the step is in units of σ: Step carries σ·∂/∂μ, so that lr multiplies σ·advantage·noise
    theta_step = lr * np.linalg.pinv(fisher, rcond=max(made.cutoff**2, 1e-11)) @ theta.grad.numpy()
    sigma_step = lr * log_sigma.grad.item() / (2 * len(sample))
    before_theta, before_sigma = made.theta.clone(), made.log_sigma
    step = Step(advantage * noise, advantage * (noise.square() - 1).mean().item())
    made.update(FEATURES, step, lr, entropy, FREE)
    np.testing.assert_allclose((made.theta - before_theta).numpy(), theta_step, rtol=1e-5, atol=1e-10)
    assert made.log_sigma - before_sigma == pytest.approx(sigma_step, rel=1e-9)


def test_the_mean_moves_by_what_the_features_explain() -> None:
    made = policy()
    before = FEATURES @ made.theta
    direction = FEATURES @ torch.tensor([0.3, -1.0, 0.2, 0.5], dtype=torch.float64)
    made.update(FEATURES, Step(direction, 0.0), 0.1, 0.0, FREE)
    torch.testing.assert_close(FEATURES @ made.theta, before + 0.1 * 0.3 * direction, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("units", [4, 56, pytest.param(1500, marks=pytest.mark.slow)])
def test_steps_of_the_default_size_go_where_they_were_asked_to(kind: str, units: int) -> None:
    """A hundred random requests: no mean runs away, and every step goes along its request."""
    draw = torch.Generator().manual_seed(3)
    one_hot = torch.eye(7, dtype=torch.float64)[torch.arange(units) % 7]
    features = torch.cat([torch.ones(units, 1), torch.linspace(0, 1, units)[:, None], one_hot], dim=1).double()
    made = GaussianPolicy(kind, features.shape[1], 0.3, 0, "decay")
    for _ in range(100):
        before = made.mean(made.theta, features)
        wanted = torch.randn(units, dtype=torch.float64, generator=draw)
        made.update(features, Step(wanted, 0.0), 1.0, 0.0, (-2.0, 2.0))
        moved = made.mean(made.theta, features) - before
        assert moved.norm() <= 1.5 * made.sigma * wanted.norm()
        assert moved @ wanted >= -1e-9
    assert made.mean(made.theta, features).abs().max() < 6


def test_a_mean_at_its_limit_is_not_pushed_further_and_comes_back_at_once() -> None:
    table = torch.eye(3, dtype=torch.float64)
    made = GaussianPolicy("linear", 3, 0.3, 0, "decay")
    push = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    for _ in range(50):
        made.update(table, Step(push, 0.0), 1.0, 0.0, (-1.0, 1.0))
    assert made.theta.abs().max() <= 1.3
    made.update(table, Step(-push, 0.0), 1.0, 0.0, (-1.0, 1.0))
    assert made.theta.abs().max() <= 1.0


def test_sigma_stays_in_its_range() -> None:
    made, still = policy(), torch.zeros(12, dtype=torch.float64)
    for _ in range(100):
        made.update(FEATURES, Step(still, -3.0), 1.0, 0.0, FREE)
    assert made.sigma == pytest.approx(SIGMA_RANGE[0])
    for _ in range(100):
        made.update(FEATURES, Step(still, 0.0), 1.0, 10.0, FREE)
    assert made.sigma == pytest.approx(SIGMA_RANGE[1])


def test_draws_have_the_stated_distribution_and_differ_by_seed_channel_and_number() -> None:
    made = policy()
    errors = torch.stack([(made.sample(FEATURES)[0] - FEATURES @ made.theta) / made.sigma for _ in range(2000)])
    assert abs(errors.mean()) < 0.03
    assert errors.std() == pytest.approx(1, abs=0.03)
    assert abs(torch.corrcoef(errors.T)[0, 1]) < 0.1
    firsts = [policy(seed=seed).sample(FEATURES)[1] for seed in (0, 1)]
    firsts.append(GaussianPolicy("linear", 4, 0.3, 0, "lr_scale").sample(FEATURES)[1])
    assert len({tuple(noise.tolist()) for noise in firsts}) == 3


def test_entropy_is_torchs() -> None:
    made = policy(sigma=0.7)
    assert made.entropy == pytest.approx(torch.distributions.Normal(0.0, 0.7).entropy().item())


@pytest.mark.parametrize("kind", MEANS)
def test_state_goes_through_json_and_draws_go_on(kind: str) -> None:
    made = policy(kind)
    made.sample(FEATURES)
    other = GaussianPolicy(kind, 4, 0.1, 0, "decay")
    other.load_state_dict(json.loads(json.dumps(made.state_dict())))
    assert torch.equal(made.sample(FEATURES)[0], other.sample(FEATURES)[0])


@given(st.lists(st.floats(-30, 30), min_size=6, max_size=6), st.floats(1.01, 100), st.floats(1.01, 100))
@settings(max_examples=150, deadline=None)
def test_mean_matched_holds_mean_and_bounds(logs: list[float], low: float, high: float) -> None:
    limits = (-math.log(low), math.log(high))
    values = mean_matched(torch.tensor(logs, dtype=torch.float64), SIZES, limits)
    assert (values @ SIZES / SIZES.sum()).item() == pytest.approx(1, rel=1e-9)
    assert values.min() >= math.exp(limits[0]) * (1 - 1e-9)
    assert values.max() <= math.exp(limits[1]) * (1 + 1e-9)


def test_mean_matched_against_brentq() -> None:
    logs, limits = torch.linspace(-2, 1.5, 6, dtype=torch.float64), (-1.5, 1.2)
    clamped = logs.clamp(*limits)

    def excess(shift: float) -> float:
        return float((clamped + shift).clamp(*limits).exp() @ SIZES / SIZES.sum() - 1)

    shift = brentq(excess, -5, 5, xtol=1e-14)
    np.testing.assert_allclose(
        mean_matched(logs, SIZES, limits).numpy(), (clamped + shift).clamp(*limits).exp().numpy(), rtol=1e-9
    )


def test_bounded() -> None:
    values = bounded(torch.tensor([-9.0, 0.0, 9.0], dtype=torch.float64), (-1.0, 2.0))
    assert values.tolist() == pytest.approx([math.exp(-1), 1.0, math.exp(2)])


@pytest.mark.parametrize("limits", [(-3.0, 3.0), (-0.5, 0.31)])
def test_mean_matched_slopes_are_the_derivative_of_the_projection(limits: tuple[float, float]) -> None:
    """Against central differences, with and without units at a bound."""
    log_values = torch.tensor([-0.9, 0.1, 0.3, -0.2, 0.45, 0.05], dtype=torch.float64)
    slopes = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.7, -1.1], dtype=torch.float64)

    def reward(x: torch.Tensor) -> float:
        return float(slopes @ mean_matched(x, SIZES, limits).log())

    nudges = 1e-6 * torch.eye(6, dtype=torch.float64)
    measured = [(reward(log_values + nudge) - reward(log_values - nudge)) / 2e-6 for nudge in nudges]
    at_bound = (mean_matched(log_values, SIZES, limits).log()[:, None] - torch.tensor(limits)).abs() < 1e-9
    assert bool(at_bound.any()) == (limits[1] < 1)
    got = mean_matched_slopes(slopes, log_values, SIZES, limits)
    np.testing.assert_allclose(got.numpy(), measured, atol=1e-6)
