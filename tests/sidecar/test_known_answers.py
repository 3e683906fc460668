"""The policy finds answers that are known: a bandit's, a noisy quadratic's, the best ridge penalties.

`pytest -s` prints how long each credit takes and how much the estimates of the gradient vary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import Bandit, Descent, Quadratic, Ridge, first_within, means

from sidecar import Sidecar
from sidecar.credit import Factored
from sidecar.policy import generator_of
from sidecar.reward import Judgement

pytestmark = pytest.mark.statistical

SEEDS = range(10)
CREDITS: dict[str, dict[str, Any]] = {
    "joint": {"credit": "joint"},
    "factored": {"credit": "factored", "unexplained": 1.0},  # the slopes as REINFORCE's control variate
    "slopes": {"credit": "factored", "unexplained": 0.0},
}
# problem → channel, interval, and by credit the tolerance of the error, policy_lr and decisions: half as many again as
# the slowest seed takes to settle, or more.
PROBLEMS = {
    Bandit: (
        "residual_gain", 1, {"joint": (0.2, 0.1, 400), "factored": (0.15, 0.1, 400), "slopes": (0.02, 0.2, 100)}
    ),
    Quadratic: ("decay", 10, {"joint": (0.2, 0.1, 200), "factored": (0.1, 0.3, 300), "slopes": (0.05, 0.3, 110)}),
    Ridge: ("decay", 20, {"joint": (0.2, 0.3, 250), "factored": (0.1, 0.3, 160), "slopes": (0.1, 0.3, 60)}),
}  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_seed_reaches_the_known_answer_and_sooner_with_factored_credit(problem: type) -> None:
    channel, interval, credits = PROBLEMS[problem]
    reached: dict[str, float] = {}
    loosest = max(tolerance for tolerance, *_ in credits.values())
    for credit, (tolerance, policy_lr, decisions) in credits.items():
        finals, first = [], []
        for seed in SEEDS:
            errors: list[float] = []
            task = problem(seed)

            def note(step: int, sidecar: Sidecar, task: Bandit | Descent = task, errors: list[float] = errors) -> None:
                if step % (interval * 10) == 0:
                    errors.append(task.error(means(sidecar, channel)))

            task.run(interval * decisions, note, seed=seed, policy_lr=policy_lr, interval=interval, **CREDITS[credit])
            finals.append(errors[-1])
            first.append(10 * first_within(errors, loosest))
        reached[credit] = float(np.median(first))
        print(
            f"\n{problem.__name__}, {credit}: largest error of {len(finals)} seeds {max(finals):.3f} "
            f"(bound {tolerance}), within {loosest} after {reached[credit]:.0f} decisions (median)"
        )
        assert max(finals) <= tolerance
    assert reached["slopes"] < min(reached["joint"], reached["factored"])


def test_factored_credit_estimates_the_same_gradient_with_less_variance() -> None:
    """Draws of one interval from one state: REINFORCE against `Factored` with and without what slopes leave over."""
    start = [torch.full((1, 16), 0.85, dtype=torch.float64) for _ in Quadratic.wanted]
    sigma, interval, draws = 0.3, 5, 1500
    drawn = []
    for draw in range(draws):
        task = Quadratic(draw)
        with torch.no_grad():
            for parameter, value in zip(task.model.parameters(), start, strict=True):
                parameter.copy_(value)
        sidecar = Sidecar(
            task.model, task.heldout_loss, lr=task.lr, weight_decay=task.weight_decay, seed=draw, interval=interval,
            bounds={"decay": task.bounds}, sigma=sigma,
        )  # fmt: skip
        sidecar.before_step(0)
        before = task.heldout_loss().item()
        for _ in range(interval):
            task.update(sidecar)
        loss, slopes = sidecar.evaluation.measure(sidecar.source.count, True)
        drawn.append((before - loss, sidecar.source.learners["decay"].drawn["noise"], slopes["decay"]))
    baseline = float(np.mean([reward for reward, *_ in drawn]))
    estimates: dict[str, np.ndarray] = {}
    for name, unexplained in (("slopes", 0.0), ("control variate", 1.0)):
        credit = Factored(0.8, unexplained)
        steps = [credit.estimate(Judgement(r, baseline, 1.0, 0.0), noise, sigma, slope) for r, noise, slope in drawn]
        estimates[name] = np.stack([step.mean.numpy() for step in steps])
    joint = np.stack([(reward - baseline) * noise.numpy() for reward, noise, _ in drawn])
    ratios = {}
    for name, estimate in estimates.items():
        error = (estimate - joint).mean(0)
        assert (np.abs(error) < 4 * (estimate - joint).std(0) / draws**0.5).all()
        ratios[name] = joint.var(0).mean() / estimate.var(0).mean()
    print("\nvariance of REINFORCE over that of the", ", of the ".join(f"{k} {v:.1f}" for k, v in ratios.items()))
    assert ratios["slopes"] > ratios["control variate"] > 2


def test_what_slopes_say_of_sigma_agrees_with_the_rewards() -> None:
    """Reward −Σx² at mean 0: ∂E/∂ln σ = −2σ², per unit, however the two estimates are mixed."""
    sigma, generator = 0.3, torch.Generator().manual_seed(0)
    for unexplained in (0.0, 0.5, 1.0):
        found = []
        for _ in range(20_000):
            noise = torch.randn(4, dtype=torch.float64, generator=generator)
            x = sigma * noise
            judgement = Judgement(-x.square().sum().item(), -4 * sigma**2, 1.0, 0.0)
            found.append(Factored(0.8, unexplained).estimate(judgement, noise, sigma, -2 * x).spread)
        assert np.mean(found) == pytest.approx(-2 * sigma**2, abs=4 * np.std(found) / len(found) ** 0.5)


def test_streams_are_their_names() -> None:
    assert (
        generator_of(1, "a").initial_seed()
        == generator_of(1, "a").initial_seed()
        != generator_of(1, "b").initial_seed()
    )
