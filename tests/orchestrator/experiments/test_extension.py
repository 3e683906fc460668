"""The step up to which a longer run is the same run, against the learning rates themselves."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from orchestrator.config.schema import (
    BranchConfig,
    Config,
    Credit,
    OptimConfig,
    Schedule,
    SidecarConfig,
    SidecarMode,
    TrainConfig,
)
from orchestrator.experiments.extension import exact_until, is_of_this_run
from orchestrator.training.optimizer import learning_rate

LONGER = (1, 2, 7, 40, 1000)


def config(steps: int, **optim: object) -> Config:
    return Config(optim=OptimConfig(**optim), train=TrainConfig(steps=steps))  # type: ignore[arg-type]


def equal_rates(optim: OptimConfig, steps: int) -> int:
    """The number of first updates whose learning rate is the same however much longer the run is."""
    same = (
        all(learning_rate(optim, step, steps) == learning_rate(optim, step, steps + more) for more in LONGER)
        for step in range(steps)
    )
    return next((step for step, equal in enumerate(same) if not equal), steps)


def test_a_formula_binds_a_run_to_its_end_where_it_depends_on_time() -> None:
    def until(*terms: str) -> int | None:
        formula = {"decay": dict.fromkeys(terms, 0.5)}
        sidecar = SidecarConfig(mode=SidecarMode.replay, coefficients=formula)
        return exact_until(replace(config(10, schedule=Schedule.constant, warmup_steps=2), sidecar=sidecar))

    assert until("depth", "attention") == 9
    assert until("depth", "depth_x_time") is None


@pytest.mark.parametrize("schedule", [Schedule.constant, Schedule.wsd])
@pytest.mark.parametrize("steps", [4, 5, 30, 31])
def test_up_to_there_every_longer_run_has_the_same_rates(schedule: Schedule, steps: int) -> None:
    for warmup, share, least in product((0, 5, 29), (0.0, 0.1, 0.25, 1.0), (0.0, 0.1, 0.3, 1.0)):
        run = config(steps, schedule=schedule, warmup_steps=warmup, decay_fraction=share, min_lr_ratio=least)
        until = exact_until(run)
        if until is None:
            assert warmup > steps, "the warm-up would be another"
            continue
        assert until <= equal_rates(run.optim, steps)
        if schedule == Schedule.wsd and share > 0 and least < 1:
            assert equal_rates(run.optim, steps) - until <= 1, "the first step of the fall still has the whole rate"
        assert is_of_this_run(config(steps + 7, **vars(run.optim)), until, steps)
        assert not is_of_this_run(config(steps + 7, **vars(run.optim)), until + 1, steps)


def test_the_rate_stays_at_its_peak() -> None:
    optim = OptimConfig(schedule=Schedule.constant, lr=0.003, warmup_steps=2, min_lr_ratio=0.1)
    assert [learning_rate(optim, step, 6) for step in range(6)] == [0.0015, 0.003, 0.003, 0.003, 0.003, 0.003]


def test_of_a_cosine_no_step_is_that_of_a_longer_run() -> None:
    assert exact_until(config(100, schedule=Schedule.cosine)) is None


def test_the_state_that_a_branch_begins_from_is_that_of_every_longer_branch() -> None:
    for schedule, expected in ((Schedule.cosine, 90), (Schedule.wsd, 90), (Schedule.constant, 100)):
        run = config(100, schedule=schedule, decay_fraction=0.2)
        run.branch = BranchConfig(arm="trunk", step=90)
        assert exact_until(run) == expected


def test_a_sidecar_decides_at_the_last_step_of_no_run() -> None:
    run = config(100, schedule=Schedule.constant)
    run.sidecar = SidecarConfig(mode=SidecarMode.learn)
    assert exact_until(run) == 99
    run.sidecar.credit, run.optim.lr, run.optim.weight_decay = Credit.forks, 0.002, 2.5
    run.sidecar.horizon = 0.1  # of 200 steps: later than 80, forks end with the run
    assert exact_until(run) == 80
    run.optim.schedule, run.optim.decay_fraction = Schedule.wsd, 0.3  # later than 50, forks reach the fall
    assert exact_until(run) == 50
    run.optim.schedule = Schedule.constant
    run.sidecar.horizon = 1.0
    assert exact_until(run) is None
    run.sidecar.credit = Credit.factored
    run.sidecar.features = ["progress"]  # the share of the run that is behind it
    assert exact_until(run) is None
    run.sidecar.mode = SidecarMode.fixed
    assert exact_until(run) == 100
