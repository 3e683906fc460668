"""Due steps, against a walk over all steps."""

from __future__ import annotations

import pytest

from orchestrator.config.schema import Config, ForensicsConfig, InterventionsConfig, TrainConfig
from orchestrator.experiments import due

PYTHIA = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000]


def config(steps: int, every: int, *, early: bool, more: int = 7) -> Config:
    return Config(
        train=TrainConfig(steps=steps, checkpoint_every=more, eval_every=more, log_every=more + 2),
        forensics=ForensicsConfig(every=every, early=early),
        interventions=InterventionsConfig(every=2 * every),
    )


def test_early_readings_double_up_to_the_first_regular_one() -> None:
    assert list(due.reading_steps(config(3000, 1000, early=True))) == PYTHIA
    assert list(due.reading_steps(config(3000, 1000, early=False))) == [0, 1000, 2000, 3000]
    assert list(due.reading_steps(config(60, 80, early=True))) == [0, 1, 2, 4, 8, 16, 32, 60]  # 64 lies behind the end


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("every", [1, 2, 3, 8, 12, 64, 100])
@pytest.mark.parametrize("steps", [1, 2, 16, 63])
def test_membership_order_and_the_next_one_agree_with_a_walk(steps: int, every: int, early: bool) -> None:
    of = config(steps, every, early=early)
    doubled = {2**power for power in range(10) if 2**power < every} if early else set()
    for found, periods, powers in (
        (due.reading_steps(of), (every,), doubled), (due.checkpoint_steps(of), (every, 7), doubled),
        (due.evaluation_steps(of), (7,), doubled), (due.record_steps(of), (7, 9), doubled),
        (due.intervention_steps(of), (2 * every,), set()),
    ):  # fmt: skip
        assert found is not None
        walked = [
            step for step in range(steps + 1) if step == steps or step in powers or any(step % p == 0 for p in periods)
        ]
        assert list(found) == walked
        assert [step for step in range(steps + 1) if step in found] == walked
        assert [found.next(step) for step in range(steps + 1)] == [
            min(one for one in walked if one >= step) for step in range(steps + 1)
        ]


def test_without_interventions_none_is_due() -> None:
    assert due.intervention_steps(Config()) is None
