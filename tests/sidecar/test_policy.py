"""The policy's gradient, step and projections against autograd, closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from sidecar.channels import Unit
from sidecar.policy import SIGMA_RANGE, GaussianPolicy, bounded, mean_matched, unit_features


def policy(layers: int = 4, sigma: float = 0.3, seed: int = 0) -> GaussianPolicy:
    units = [Unit(f"{i}.{k}", k, i / (layers - 1), 1) for i in range(layers) for k in ("down", "gate", "q")]
    made = GaussianPolicy(unit_features(units), sigma, seed, "decay")
    made.theta = torch.linspace(-0.5, 0.5, made.features.shape[1], dtype=torch.float64)
    return made


def test_features() -> None:
    units = [Unit("a", "q", 0.0, 1), Unit("b", "down", 0.5, 1), Unit("c", "q", 1.0, 1)]
    expected = [[1, 0.0, 0, 1], [1, 0.5, 1, 0], [1, 1.0, 0, 1]]
    assert unit_features(units).tolist() == expected


def test_gradient_is_autograds() -> None:
    made = policy()
    sample = made.sample()
    theta = made.theta.clone().requires_grad_()
    log_sigma = torch.tensor(made.log_sigma, dtype=torch.float64, requires_grad=True)
    density = torch.distributions.Normal(made.features @ theta, log_sigma.exp())
    density.log_prob(sample).sum().backward()
    by_theta, by_log_sigma = made.gradient(sample)
    torch.testing.assert_close(by_theta, theta.grad, rtol=1e-12, atol=1e-12)
    assert by_log_sigma == pytest.approx(log_sigma.grad.item(), rel=1e-12)


def test_update_is_the_natural_gradient_of_reward_and_entropy() -> None:
    made = policy()
    sample, advantage, lr, entropy = made.sample(), 1.7, 0.05, 0.2
    theta = made.theta.clone().requires_grad_()
    log_sigma = torch.tensor(made.log_sigma, dtype=torch.float64, requires_grad=True)
    density = torch.distributions.Normal(made.features @ theta, log_sigma.exp())
    (advantage * density.log_prob(sample).sum() + entropy * density.entropy().sum()).backward()
    fisher = (made.features.T @ made.features / made.sigma**2).numpy()
    theta_step = lr * np.linalg.lstsq(fisher, theta.grad.numpy(), rcond=1e-10)[0]
    sigma_step = lr * log_sigma.grad.item() / (2 * len(sample))
    before_theta, before_sigma = made.theta.clone(), made.log_sigma
    made.update(sample, advantage, lr, entropy)
    np.testing.assert_allclose((made.theta - before_theta).numpy(), theta_step, rtol=1e-9, atol=1e-12)
    assert made.log_sigma - before_sigma == pytest.approx(sigma_step, rel=1e-9)


def test_the_mean_moves_by_lr_of_what_the_features_explain() -> None:
    made = policy()
    before = made.features @ made.theta
    direction = made.features @ torch.tensor([0.3, -1.0, 0.2, 0.0, 0.5], dtype=torch.float64)
    made.update(before + direction, advantage=1.0, lr=0.1, entropy=0.0)
    torch.testing.assert_close(made.features @ made.theta, before + 0.1 * direction, rtol=1e-10, atol=1e-12)


def test_sigma_stays_in_its_range() -> None:
    made = policy()
    for _ in range(100):
        made.update(made.features @ made.theta, advantage=3.0, lr=1.0, entropy=0.0)
    assert made.sigma == pytest.approx(SIGMA_RANGE[0])
    for _ in range(100):
        made.update(made.features @ made.theta, advantage=0.0, lr=1.0, entropy=10.0)
    assert made.sigma == pytest.approx(SIGMA_RANGE[1])


def test_draws_have_the_stated_distribution_and_differ_by_seed_channel_and_number() -> None:
    made = policy()
    errors = torch.stack([(made.sample() - made.features @ made.theta) / made.sigma for _ in range(2000)])
    assert abs(errors.mean()) < 0.03
    assert abs(errors.std() - 1) < 0.03
    assert len({tuple(row.tolist()) for row in errors}) == 2000
    other = GaussianPolicy(made.features, 0.3, 0, "lr_scale")
    assert not torch.equal(other.sample(), GaussianPolicy(made.features, 0.3, 0, "decay").sample())
    assert not torch.equal(policy(seed=1).sample(), policy(seed=2).sample())


def test_drawing_leaves_torchs_global_generator_alone() -> None:
    made, before = policy(), torch.get_rng_state()
    made.sample()
    assert torch.equal(torch.get_rng_state(), before)


def test_bounded_clamps() -> None:
    values = bounded(torch.tensor([-9.0, 0.0, 0.5, 9.0], dtype=torch.float64), 2.0)
    assert values.tolist() == pytest.approx([math.exp(-2), 1.0, math.exp(0.5), math.exp(2)])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.integers(1, 10**9)), min_size=1, max_size=20),
    st.floats(0.01, 5),
)
def test_mean_matched_is_exact_bounded_and_keeps_the_order(units: list[tuple[float, int]], bound: float) -> None:
    sample, sizes = (torch.tensor(column, dtype=torch.float64) for column in zip(*units, strict=True))
    values = mean_matched(sample, sizes, bound).numpy()
    assert np.average(values, weights=sizes.numpy()) == pytest.approx(1, abs=1e-12)
    assert values.min() >= math.exp(-bound) * (1 - 1e-12)
    assert values.max() <= math.exp(bound) * (1 + 1e-12)
    order = np.argsort(sample.numpy(), kind="stable")
    assert (np.diff(values[order]) >= 0).all()


def test_mean_matched_is_the_shift_that_scipy_finds() -> None:
    sample, sizes = np.array([-1.5, 0.2, 0.9, 2.5]), np.array([4.0, 1.0, 10.0, 3.0])

    def excess(shift: float) -> float:
        return float(np.average(np.exp(np.clip(sample + shift, -2, 2)), weights=sizes) - 1)

    sample = np.clip(sample, -2, 2)
    expected = np.exp(np.clip(sample + brentq(excess, -2, 2, xtol=1e-15), -2, 2))
    np.testing.assert_allclose(mean_matched(torch.tensor(sample), torch.tensor(sizes), 2.0).numpy(), expected)
