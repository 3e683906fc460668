"""The policy finds answers that are known: a bandit's, a noisy quadratic's, the best ridge penalties.

`pytest -s` prints how long each credit takes and how much the estimates of the gradient vary.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import Bandit, Descent, Quadratic, Ridge, first_within, means

from sidecar import Sidecar
from sidecar.policy import generator_of

SEEDS = range(10)
# problem → channel, interval, decisions, tolerance of the error and policy_lr by credit
PROBLEMS = {
    Bandit: ("residual_gain", 1, 1000, {"joint": (0.2, 0.1), "factored": (0.02, 0.2)}),
    Quadratic: ("decay", 20, 250, {"joint": (0.2, 0.1), "factored": (0.05, 0.3)}),
    Ridge: ("decay", 40, 150, {"joint": (0.15, 0.3), "factored": (0.1, 0.3)}),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_seed_reaches_the_known_answer_and_sooner_with_factored_credit(problem: type) -> None:
    channel, interval, decisions, credits = PROBLEMS[problem]
    reached: dict[str, list[int]] = {}
    loosest = max(tolerance for tolerance, _ in credits.values())
    for credit, (tolerance, policy_lr) in credits.items():
        finals = []
        for seed in SEEDS:
            errors: list[float] = []
            task = problem(seed)

            def note(step: int, sidecar: Sidecar, task: Bandit | Descent = task, errors: list[float] = errors) -> None:
                if step % (interval * 10) == 0:
                    errors.append(task.error(means(sidecar, channel)))

            task.run(interval * decisions, note, seed=seed, credit=credit, policy_lr=policy_lr, interval=interval)
            finals.append(errors[-1])
            reached.setdefault(credit, []).append(10 * first_within(errors, loosest))
        print(
            f"\n{problem.__name__} {credit}: largest error of {len(finals)} seeds {max(finals):.3f} (bound {tolerance})"
        )
        assert max(finals) <= tolerance
    joint, factored = (float(np.median(reached[credit])) for credit in ("joint", "factored"))
    print(f"{problem.__name__}: within {loosest} after {joint:.0f} decisions (joint), {factored:.0f} (factored)")
    assert factored < joint


def test_factored_credit_estimates_the_same_gradient_with_less_variance() -> None:
    """Draws of one interval from one state: REINFORCE against the slopes, with and without what they leave over."""
    estimates: dict[str, list[np.ndarray]] = {"joint": [], "slopes": [], "control variate": []}
    start = [torch.full((1, 16), 0.85, dtype=torch.float64) for _ in Quadratic.wanted]
    rewards, draws = [], 1500
    sigma, interval = 0.3, 10
    for draw in range(draws):
        task = Quadratic(draw)
        with torch.no_grad():
            for parameter, value in zip(task.model.parameters(), start, strict=True):
                parameter.copy_(value)
        sidecar = Sidecar(
            task.model, task.heldout_loss, lr=task.lr, weight_decay=task.weight_decay, seed=draw, interval=interval,
            bounds={"decay": (0.01, 15.0)}, sigma=sigma,
        )  # fmt: skip
        sidecar.before_step(0)
        before = task.heldout_loss().item()
        for _ in range(interval):
            task.update(sidecar)
        loss, slopes = sidecar._evaluate(True)
        rewards.append(before - loss)
        noise = sidecar.draws["decay"]["noise"]
        estimates["joint"].append((rewards[-1] * noise).numpy())
        estimates["slopes"].append((sigma * slopes["decay"]).numpy())
        estimates["control variate"].append((noise, sigma * slopes["decay"]))  # type: ignore[arg-type]
    mean_reward = np.mean(rewards)
    noise = np.stack([n.numpy() for n, _ in estimates["control variate"]])
    slope = np.stack([c.numpy() for _, c in estimates["control variate"]])
    joint = (np.array(rewards) - mean_reward)[:, None] * noise
    fixed = slope.mean(0)  # does not depend on the draw, so adding it back leaves the expectation as it is
    control = fixed + ((np.array(rewards) - mean_reward) - noise @ fixed)[:, None] * noise
    for estimate in (control, slope):
        error = (estimate - joint).mean(0)
        assert (np.abs(error) < 4 * (estimate - joint).std(0) / draws**0.5).all()
    ratios = [joint.var(0).mean() / estimate.var(0).mean() for estimate in (control, slope)]
    print(f"\nvariance of REINFORCE over that of the control variate {ratios[0]:.2f}, of the slopes {ratios[1]:.0f}")
    assert ratios[1] > 10
    assert ratios[1] > ratios[0] > 0.9


def test_streams_are_their_names() -> None:
    assert (
        generator_of(1, "a").initial_seed()
        == generator_of(1, "a").initial_seed()
        != generator_of(1, "b").initial_seed()
    )
