"""The sidecar in a loop: what it learns, holds, refuses, records and remembers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sidecar import Sidecar

PARAMS = {
    f"layers.{layer}.{kind}.weight": torch.zeros(rows, 4)
    for layer in range(3)
    for kind, rows in (("down", 4), ("gate", 12))
}
BEST = {"down": 0.8, "gate": -0.8}  # log-multipliers that the bandit rewards most


def make(**settings: Any) -> Sidecar:
    return Sidecar(PARAMS, **{"lr": 1e-3, "weight_decay": 0.1, "seed": 0, "interval": 1} | settings)


def bandit(sidecar: Sidecar, steps: int) -> list[dict[str, float]]:
    """Held-out loss rises by the multipliers' squared distance from `BEST`; returns them step by step."""
    loss, seen = 0.0, []
    for step in range(steps):
        sidecar.before_step(step, lambda loss=loss: loss)
        seen.append(sidecar.decay_multipliers())
        loss += sum((math.log(m) - BEST[name.split(".")[2]]) ** 2 for name, m in seen[-1].items())
    return seen


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_best_multipliers_of_a_bandit(seed: int) -> None:
    seen = bandit(make(seed=seed), 600)[-100:]
    for name in PARAMS:
        mean = sum(math.log(values[name]) for values in seen) / len(seen)
        assert mean == pytest.approx(BEST[name.split(".")[2]], abs=0.1)


def test_random_mode_draws_the_same_distribution_for_ever_and_learns_nothing() -> None:
    sidecar = make(mode="random")
    before = sidecar.policies["decay"].theta.clone()
    logs = torch.tensor([list(values.values()) for values in bandit(sidecar, 400)], dtype=torch.float64).log()
    assert torch.equal(sidecar.policies["decay"].theta, before)
    assert sidecar.policies["decay"].sigma == pytest.approx(0.3, rel=1e-15)
    assert abs(logs.mean()) < 0.02
    assert abs(logs.std() - 0.3) < 0.02
    assert sidecar.record()["reward"] is not None


def test_learn_and_random_begin_with_the_same_proposal() -> None:
    assert bandit(make(mode="learn"), 1) == bandit(make(mode="random"), 1)


def test_fixed_mode_is_one_everywhere_and_never_evaluates() -> None:
    def never() -> float:
        raise AssertionError("held-out loss was asked for")

    sidecar = make(mode="fixed", mean_matched=True)
    assert not sidecar.before_step(0, never)
    assert sidecar.decay_multipliers() == dict.fromkeys(PARAMS, 1.0)
    assert sidecar.record() == {}


def test_a_proposal_is_held_for_its_interval_and_judged_by_the_loss_at_its_ends() -> None:
    sidecar, calls = make(interval=5), iter([4.0, 3.7, 3.6])
    values, decided = [], []
    for step in range(12):
        decided.append(sidecar.before_step(step, lambda: next(calls)))
        values.append(tuple(sidecar.decay_multipliers().values()))
    assert [step for step, now in enumerate(decided) if now] == [0, 5, 10]
    assert [len(set(part)) for part in (values[:5], values[5:10], values[10:])] == [1, 1, 1]
    assert len(set(values)) == 3
    record = sidecar.record()
    assert record["step"] == 10
    assert record["reward"] == pytest.approx(0.1)
    assert record["baseline"] == pytest.approx(0.3)
    assert record["advantage"] < 0


def test_record_is_json_with_the_values_in_force() -> None:
    sidecar = make(interval=10)
    sidecar.before_step(0, lambda: 4.0)
    record = json.loads(json.dumps(sidecar.record(), allow_nan=False))
    assert record["values"]["decay"] == sidecar.decay_multipliers()
    assert record["reward"] is record["baseline"] is record["advantage"] is None
    assert record["sigma"]["decay"] == pytest.approx(0.3)
    values = list(record["values"]["decay"].values())
    assert (record["summary"]["decay"]["min"], record["summary"]["decay"]["max"]) == (
        min(values),
        max(values),
    )
    mean = sum(m * PARAMS[name].numel() for name, m in record["values"]["decay"].items()) / (3 * 64)
    assert record["summary"]["decay"]["mean"] == pytest.approx(mean)
    record["values"]["decay"].clear()
    assert len(sidecar.decay_multipliers()) == len(PARAMS)


def test_mean_matched_moves_decay_but_not_its_amount() -> None:
    for values in bandit(make(mean_matched=True), 50):
        total = sum(m * PARAMS[name].numel() for name, m in values.items())
        assert total == pytest.approx(3 * 64, rel=1e-12)
        assert len(set(values.values())) > 1


def test_multipliers_never_leave_the_bound() -> None:
    for values in bandit(make(sigma=5.0, log_bound=0.5), 30):
        assert all(math.exp(-0.5) * 0.999 <= m <= math.exp(0.5) * 1.001 for m in values.values())


def loop(sidecar: Sidecar, start: int, stop: int, heldout: Callable[[int], float]) -> list[Any]:
    out = []
    for step in range(start, stop):
        sidecar.before_step(step, lambda step=step: heldout(step))
        out.append((sidecar.decay_multipliers(), sidecar.record()))
    return out


@pytest.mark.parametrize("mode", ["learn", "random", "fixed"])
@pytest.mark.parametrize("cut", [0, 1, 7, 15, 16])
def test_resume_is_bitwise(mode: str, cut: int) -> None:
    noise = random.Random(3)
    losses = [4 - 0.02 * step + noise.gauss(0, 0.05) for step in range(60)]
    whole = make(interval=5, mode=mode)
    expected = loop(whole, 0, 60, losses.__getitem__)
    first = make(interval=5, mode=mode)
    got = loop(first, 0, cut, losses.__getitem__)
    saved = json.loads(json.dumps(first.state_dict(), sort_keys=True, allow_nan=False))
    second = make(interval=5, mode=mode)
    second.load_state_dict(saved)
    assert second.record() == first.record()
    got += loop(second, cut, 60, losses.__getitem__)
    assert got == expected
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_keeps_the_last_good_values(bad: float) -> None:
    sidecar = make()
    loop(sidecar, 0, 6, lambda step: 4 - 0.1 * step**0.5)
    values, policy = sidecar.decay_multipliers(), sidecar.policies["decay"].state_dict()
    with pytest.warns(RuntimeWarning):
        assert sidecar.before_step(6, lambda: bad)
    assert sidecar.decay_multipliers() == values
    assert sidecar.policies["decay"].state_dict() == policy
    assert sidecar.record()["reward"] is None
    json.dumps(sidecar.state_dict(), allow_nan=False)
    sidecar.before_step(7, lambda: 3.7)
    assert sidecar.decay_multipliers() == values
    sidecar.before_step(8, lambda: 3.6)
    assert sidecar.decay_multipliers() != values
    assert sidecar.record()["reward"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": 0.2}, r"channel 'decay' may take 0\.199"),
        ({"mode": "sometimes"}, "mode 'sometimes' is unknown"),
        ({"channels": ["dacay"]}, "among decay"),
        ({"channels": []}, "at least one"),
        ({"interval": 0}, "interval=0"),
        ({"sigma": math.nan}, "sigma=nan"),
        ({"log_bound": 1e4}, "log_bound=10000"),
        ({"policy_lr": math.inf}, "policy_lr=inf"),
        ({"baseline_decay": 0.0}, "baseline_decay=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(**settings)


def test_fixed_mode_is_checked_against_its_own_multiplier() -> None:
    assert set(make(lr=0.2, mode="fixed").decay_multipliers().values()) == {1.0}
    with pytest.raises(ValueError, match=r"bound is 0\.1"):
        make(lr=0.2, mode="learn")


def test_state_of_another_model_is_refused() -> None:
    sidecar = make()
    bandit(sidecar, 2)
    renamed = {name.replace("down", "up"): tensor for name, tensor in PARAMS.items()}
    with pytest.raises(ValueError, match="other parameters"):
        Sidecar(renamed, lr=1e-3, weight_decay=0.1, seed=0).load_state_dict(sidecar.state_dict())
    fewer = {name: tensor for name, tensor in PARAMS.items() if "down" in name}
    with pytest.raises(ValueError, match=r"4 features and this model's has 3"):
        Sidecar(fewer, lr=1e-3, weight_decay=0.1, seed=0).load_state_dict(make().state_dict())
