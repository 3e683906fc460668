"""The sidecar in a loop: what it decides, holds, records and remembers."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidecar.channels import CHANNELS
from tests.sidecar.loop import ALL, Loop, Model, X, Y, equal, heldout_of, make

SETTINGS: list[dict[str, Any]] = [
    {"mode": "learn", "credit": "factored"},
    {"mode": "learn", "credit": "factored", "unexplained": 1.0, "mean_matched": True, "share": "kind"},
    {"mode": "learn", "credit": "joint", "channels": ALL, "policy": "mlp", "features": ("depth", "kind", "progress")},
    {"mode": "learn", "channels": ALL, "features": ("unit", "log_norm", "momentum_alignment", "row_cv"), "fresh": True},
    {"mode": "learn", "decay": "cautious", "lr_factors": {"layers.0.mlp.down_proj.weight": 1.5}},
    {"mode": "learn", "channels": ("decay", "lr_scale"), "trace": "run", "unexplained": 0.0},
    {"mode": "random"},
    {"mode": "fixed"},
]


@pytest.mark.parametrize(
    "settings",
    [
        *SETTINGS,
        *(pytest.param({"channels": [name]}, id=name) for name in CHANNELS),
        pytest.param({"channels": list(CHANNELS)}, id="all-channels"),
    ],
)
@pytest.mark.parametrize("cut", [0, 1, 5, 9, 10, 14])
def test_resume_is_bitwise(settings: dict[str, Any], cut: int) -> None:
    whole = Loop(**settings).run(31)
    first = Loop(**settings).run(cut)
    saved = json.loads(json.dumps(first.sidecar.state_dict(), sort_keys=True, allow_nan=False))
    second = Loop(**settings)
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.sidecar.load_state_dict(saved, copy.deepcopy(first.sidecar.tensors()))
    second.step = cut
    assert second.sidecar.record() == first.sidecar.record()
    second.run(31 - cut)
    assert first.decided + second.decided == whole.decided
    assert equal(second.weights(), whole.weights())
    assert second.sidecar.state_dict() == whole.sidecar.state_dict()


def test_fixed_mode_is_bitwise_torchs_adamw_without_a_sidecar() -> None:
    def never(interval: int) -> Tensor:
        raise AssertionError("held-out loss was asked for")

    pressed = Loop(never, mode="fixed", channels=ALL).run(20)
    model = Model()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.5},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(model(X[:32]), Y[:32]).backward()
        optimizer.step()
    assert equal(pressed.weights(), list(model.parameters()))
    assert pressed.decided == []
    assert pressed.sidecar.record() == {}
    assert set(pressed.sidecar.multipliers("decay").values()) == {1.0}


@pytest.mark.parametrize("channels", [("decay",), ALL])
def test_a_replayed_schedule_is_bitwise_the_run_it_was_recorded_from(channels: tuple[str, ...]) -> None:
    learned = Loop(channels=channels).run(40)
    assert len({json.dumps(d["values"]) for d in learned.decided}) == 8
    replayed = Loop(channels=channels, mode="replay", playback=learned.decided).run(40)
    assert equal(learned.weights(), replayed.weights())
    assert replayed.sidecar.evaluation.forwards == 0
    for mode in ("permute", "random"):
        other = Loop(channels=channels, mode=mode, playback=learned.decided).run(40)
        assert not equal(learned.weights(), other.weights())
        for mine, theirs in zip(other.decided, learned.decided, strict=True):
            assert sorted(mine["values"]["decay"].values()) == sorted(theirs["values"]["decay"].values())


def test_a_schedule_replayed_with_shared_multipliers_keeps_its_mean() -> None:
    learned = Loop().run(20)
    shared = Loop(mode="replay", playback=learned.decided, share="all").run(20)
    for mine, theirs in zip(shared.decided, learned.decided, strict=True):
        assert len(set(mine["values"]["decay"].values())) == 1
        assert mine["summary"]["decay"]["mean"] == pytest.approx(theirs["summary"]["decay"]["mean"])


@pytest.mark.parametrize("cut", [3, 5, 12])
def test_a_schedule_goes_on_after_a_restart(cut: int) -> None:
    learned = Loop().run(30)
    first = Loop(mode="replay", playback=learned.decided).run(cut)
    second = Loop(mode="replay", playback=learned.decided)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.sidecar.load_state_dict(json.loads(json.dumps(first.sidecar.state_dict())), first.sidecar.tensors())
    second.step = cut
    assert equal(second.run(30 - cut).weights(), learned.weights())


def test_a_proposal_is_held_for_its_interval_and_judged_on_the_batches_it_began_on() -> None:
    asked: list[int] = []

    def heldout(interval: int) -> Tensor:
        asked.append(interval)
        return torch.tensor([4.0, 3.0, 2.9][interval % 3] - 0.1 * len(asked)) + 0 * model.head.weight.sum()

    model = Model()
    sidecar = make(model, heldout, fresh=True, credit="joint")
    decided = [step for step in range(12) if sidecar.before_step(step)]
    assert decided == [0, 5, 10]
    assert asked == [0, 0, 1, 1, 2]
    record = sidecar.record()
    assert record["reward"] == pytest.approx(0.1, rel=1e-5)
    assert (record["evaluations"], record["backwards"]) == (5, 0)


def test_learning_needs_one_evaluation_per_interval_and_leaves_no_gradient() -> None:
    loop = Loop()
    loop.sidecar.before_step(0)
    assert all(parameter.grad is None for parameter in loop.model.parameters())
    loop.run(26)
    assert (loop.sidecar.evaluation.forwards, loop.sidecar.evaluation.backwards) == (6, 6)


def test_a_trace_of_the_run_is_that_of_one_interval_as_long() -> None:
    """The trace of decay, with multipliers that change, is the recursion of the weights' own gain, by hand."""
    settings = {"trace": "run", "unexplained": 0.0}
    loop = Loop(**settings)
    traces = [torch.zeros(6, 6)]
    weight = loop.model.layers[1].mlp.down_proj.weight
    for _ in range(17):
        before = weight.detach().clone()
        loop.run(1)
        shrink = 1e-2 * 0.5 * loop.sidecar.multipliers("decay")["layers.1.mlp.down_proj.weight"]
        traces.append((1 - shrink) * traces[-1] + shrink * before)
    kept = loop.sidecar.channels["decay"].memory()["layers.1.mlp.down_proj.weight"]
    torch.testing.assert_close(kept, traces[-1], rtol=1e-4, atol=1e-7)


def test_parts_of_a_loss_count_like_their_sum() -> None:
    def parts(model: nn.Module) -> Callable[[int], Any]:
        return lambda interval: (
            F.mse_loss(model(x), y) / 4 for x, y in zip(X[32:].split(8), Y[32:].split(8), strict=True)
        )

    whole, split = Model(), Model()
    a, b = make(whole), make(split, parts(split))
    (la, sa), (lb, sb) = a.evaluation.measure(0, True), b.evaluation.measure(0, True)
    assert la == pytest.approx(lb)
    torch.testing.assert_close(sa["decay"], sb["decay"])


def test_record_is_json_with_the_values_in_force() -> None:
    loop = Loop(channels=ALL).run(7)
    record = json.loads(json.dumps(loop.sidecar.record(), allow_nan=False))
    assert record["step"] == 5
    sizes = {unit.name: unit.size for unit in loop.sidecar.channels["decay"].units}
    for name in ALL:
        values = record["values"][name]
        assert values == loop.sidecar.multipliers(name)
        summary = record["summary"][name]
        assert (summary["min"], summary["max"]) == (min(values.values()), max(values.values()))
        assert record["sigma"][name] > 0
        assert record["entropy"][name] == pytest.approx(math.log(record["sigma"][name]) + 1.4189385)
    mean = sum(m * sizes[unit] for unit, m in record["values"]["decay"].items()) / sum(sizes.values())
    assert record["summary"]["decay"]["mean"] == pytest.approx(mean)


def test_the_share_of_units_at_a_bound_is_told() -> None:
    sidecar = make(sigma=5.0, bounds={"decay": (0.9, 1.1)})
    sidecar.before_step(0)
    values = sidecar.multipliers("decay").values()
    assert all(0.9 * 0.999 < m < 1.1 * 1.001 for m in values)
    at_bound = sum(m < 0.9001 or m > 1.0999 for m in values) / len(values)
    assert sidecar.record()["summary"]["decay"]["at_bound"] == pytest.approx(at_bound)
    assert at_bound > 0.5


def test_mean_matched_moves_decay_but_not_its_amount() -> None:
    for decision in Loop(mean_matched=True, sigma=1.0, policy_lr=1.0).run(50).decided:
        assert decision["summary"]["decay"]["mean"] == pytest.approx(1, rel=1e-9)
        assert len(set(decision["values"]["decay"].values())) > 1


@pytest.mark.parametrize("credit", ["joint", "factored"])
def test_nothing_is_proposed_where_no_step_follows_nor_learned_before_the_warm_up_is_over(credit: str) -> None:
    loop = Loop(steps=20, warmup=2, credit=credit).run(20)
    assert not loop.sidecar.before_step(20)
    assert [decision["step"] for decision in loop.decided] == [0, 5, 10, 15]
    assert [decision["reward"] is None for decision in loop.decided] == [True, True, True, False]
    assert len({json.dumps(decision["values"]) for decision in loop.decided}) == 2


def test_channels_act_in_one_order_however_they_are_listed() -> None:
    """Decay is not part of what lr_scale scales."""
    playback = [{"step": 0, "values": Loop(channels=ALL).run(1).sidecar.record()["values"]}]
    runs = [
        Loop(channels=channels, mode="replay", playback=playback).run(5).weights()
        for channels in (("decay", "lr_scale"), ("lr_scale", "decay"))
    ]
    assert equal(*runs)


def test_what_is_not_trained_does_not_decay() -> None:
    loop = Loop()
    loop.model.head.weight.requires_grad_(False)
    loop.sidecar = make(loop.model)
    before = loop.model.head.weight.clone()
    loop.run(20)
    assert torch.equal(loop.model.head.weight, before)


def test_a_model_that_changes_its_precision_trains_on() -> None:
    loop = Loop(channels=ALL).run(7)
    loop.model.double()
    x, y = X.double(), Y.double()
    loop.sidecar.evaluation.heldout_loss = lambda interval: F.mse_loss(loop.model(x[32:]), y[32:])
    loop.optimizer = torch.optim.Adam(loop.model.parameters(), lr=1e-2)
    for step in range(7, 30):
        loop.sidecar.before_step(step)
        loop.optimizer.zero_grad()
        F.mse_loss(loop.model(x[:32]), y[:32]).backward()
        with loop.sidecar.applied(1e-2):
            loop.optimizer.step()
    assert all(parameter.isfinite().all() for parameter in loop.model.parameters())
    assert all(trace.dtype == torch.float64 for trace in loop.sidecar.channels["decay"].memory().values())


def test_a_closed_sidecar_leaves_the_model_as_it_was() -> None:
    model = Model()
    plain = model(X)
    sidecar = make(model, channels=["residual_gain"])
    sidecar.before_step(0)
    assert not torch.equal(model(X), plain)
    sidecar.close()
    assert torch.equal(model(X), plain)


def test_kinds_of_several_stacks_are_told_apart() -> None:
    model = nn.ModuleDict({"encoder": Model(2), "decoder": Model(2)})
    units = make(model, heldout_of(model)).channels["decay"].units
    inside = [(unit.kind, unit.layer) for unit in units if unit.layer is not None]
    assert len({*inside}) == len(inside) == 8
    assert [unit.name for unit in units if unit.layer is None] == ["encoder.head.weight", "decoder.head.weight"]


@pytest.mark.parametrize(("share", "distinct"), [("none", 7), ("kind", 3), ("layer", 4), ("all", 1)])
def test_units_may_share_a_multiplier(share: str, distinct: int) -> None:
    loop = Loop(share=share).run(26)
    assert {len(set(d["values"]["decay"].values())) for d in loop.decided} == {distinct}


def test_random_mode_draws_for_ever_from_the_untrained_policy() -> None:
    sidecar = make(Model(10), mode="random", interval=1)
    draws = []
    for step in range(400):
        sidecar.before_step(step)
        draws.append(list(sidecar.multipliers("decay").values()))
    logs = torch.tensor(draws).log()
    assert abs(logs.mean()) < 0.02
    assert logs.std() == pytest.approx(0.3, abs=0.01)
    assert make().before_step(0)


def test_learn_and_random_begin_with_the_same_proposal() -> None:
    a, b = Loop(mode="learn").run(1), Loop(mode="random").run(1)
    assert a.sidecar.multipliers("decay") == b.sidecar.multipliers("decay")
