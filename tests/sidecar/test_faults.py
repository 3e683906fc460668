"""Faults while the sidecar decides: the last good values stay, one warning is given, and training goes on."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.naming import naming
from tests.sidecar.loop import ALL, Loop, Model, heldout_of, make


def fail_at(model: nn.Module, interval: int, how: Callable[[Tensor], Tensor]) -> Callable[[int], Tensor]:
    return lambda k: how(heldout_of(model)(k)) if k == interval else heldout_of(model)(k)


def boom(loss: Tensor) -> Tensor:
    raise RuntimeError("the held-out file is gone")


@pytest.mark.parametrize("credit", ["joint", "factored"])
@pytest.mark.parametrize(
    ("how", "named"),
    [
        (lambda loss: loss * math.nan, ["nan"]),
        (lambda loss: loss + math.inf, [" inf"]),
        (lambda loss: loss - math.inf, ["-inf"]),
        (boom, ["RuntimeError: the held-out file is gone"]),
        (lambda loss: torch.zeros(3), ["ValueError", "[3]"]),
    ],
)
def test_an_evaluation_that_fails_keeps_the_last_good_values(how: Any, named: list[str], credit: str) -> None:
    model = Model()
    sidecar = make(model, fail_at(model, 2, how), interval=1, credit=credit)

    def begin(step: int) -> None:
        sidecar.before_step(step)
        with sidecar.applied(1e-2):
            pass

    for step in range(3):
        begin(step)
    values, policy = sidecar.multipliers("decay"), sidecar.source.learners["decay"].policy.state_dict()
    with pytest.warns(RuntimeWarning, match=naming(*named)):
        begin(3)
    assert sidecar.multipliers("decay") == values
    assert sidecar.source.learners["decay"].policy.state_dict() == policy
    assert sidecar.record()["reward"] is None
    json.dumps(sidecar.state_dict(), allow_nan=False)
    begin(4)  # its interval began at an unknown loss
    assert sidecar.multipliers("decay") == values
    begin(5)
    assert sidecar.multipliers("decay") != values


def test_one_warning_however_often_it_fails() -> None:
    loop = Loop(interval=1, credit="joint").run(2)
    loop.sidecar.evaluation.heldout_loss = lambda interval: torch.tensor(math.nan)
    with pytest.warns(RuntimeWarning) as caught:
        loop.run(10)
    assert len(caught) == 1
    assert all(parameter.isfinite().all() for parameter in loop.model.parameters())


USELESS: list[tuple[Any, type[Exception], list[str]]] = [
    (lambda model: 0.5, ValueError, ["heldout_loss", "float", "0.5"]),
    (lambda model: [heldout_of(model)(0).item()], ValueError, ["heldout_loss", "float"]),
    (lambda model: None, ValueError, ["heldout_loss", "NoneType"]),
    (lambda model: [], ValueError, ["heldout_loss", "no tensor"]),
    (lambda model: torch.zeros(3), ValueError, ["heldout_loss", "[3]"]),
    (lambda model: heldout_of(model)(0) * math.nan, ValueError, ["heldout_loss", "nan"]),
    (lambda model: heldout_of(model)(0) + math.inf, ValueError, ["heldout_loss", "inf"]),
    (lambda model: boom(torch.zeros(())), RuntimeError, ["the held-out file is gone"]),
]
WITHOUT_SLOPES: list[tuple[Any, type[Exception], list[str]]] = [
    (lambda model: heldout_of(model)(0).detach(), ValueError, ["heldout_loss", "graph"]),
    (torch.no_grad()(lambda model: heldout_of(model)(0)), ValueError, ["heldout_loss", "graph"]),
    (lambda model: heldout_of(Model())(0), ValueError, ["heldout_loss", "copy"]),
]


@pytest.mark.parametrize(
    ("credit", "how", "kind", "named"),
    [("joint", *row) for row in USELESS] + [("factored", *row) for row in USELESS + WITHOUT_SLOPES],
)
def test_what_can_teach_nothing_is_an_error_before_the_first_step(
    credit: str, how: Callable[[nn.Module], Any], kind: type[Exception], named: list[str]
) -> None:
    model = Model()
    sidecar = make(model, lambda interval: how(model), credit=credit)
    for _ in range(2):  # and again, where the user catches it
        with pytest.raises(kind, match=naming(*named)):
            sidecar.before_step(0)
    assert sidecar.record() == {}


def test_a_failure_after_a_restart_is_a_later_one() -> None:
    first, second = Loop().run(3), Loop(lambda interval: boom(torch.zeros(())))
    second.sidecar.load_state_dict(first.sidecar.state_dict(), first.sidecar.tensors())
    second.step = 3
    with pytest.warns(RuntimeWarning, match="the held-out file is gone"):
        second.run(3)


class Dropping(Model):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.layers[1].drop = nn.Dropout(rate)
        self.attention = nn.MultiheadAttention(6, 2, dropout=rate)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.layers[1].drop(x) + 0 * self.attention(x, x, x)[0])


@pytest.mark.parametrize(("rate", "evaluates", "warned"), [(0.1, False, True), (0.1, True, False), (0.0, False, False)])
def test_dropout_in_an_evaluation_is_warned_of_once(rate: float, evaluates: bool, warned: bool) -> None:
    model = Dropping(rate)

    def heldout(interval: int) -> Tensor:
        model.train(not evaluates)
        loss = heldout_of(model)(interval)
        model.train()
        return loss

    sidecar = make(model, heldout, credit="joint")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(0, 15, 5):
            sidecar.before_step(step)
    assert [w.category for w in caught] == [RuntimeWarning] * warned
    assert all("layers.1.drop and 1 more" in str(w.message) for w in caught)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_loop_that_forgets_the_sidecars_part_is_warned_of_once() -> None:
    sidecar = make(interval=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(4):
            sidecar.before_step(step)
    assert [(w.category, "applied" in str(w.message)) for w in caught] == [(RuntimeWarning, True)]


def vanish(model: Model) -> None:
    for layer in model.layers:
        layer.self_attn.o_proj.weight.data = torch.empty(0, 6)
        layer.self_attn.o_proj.bias.data = torch.empty(0)
        layer.self_attn.o_proj.weight.requires_grad_(False)


@pytest.mark.parametrize("channels", [("decay",), ("lr_scale",), ("residual_gain",), ALL])
def test_a_channel_whose_tensors_vanish_keeps_its_values_and_training_goes_on(channels: tuple[str, ...]) -> None:
    loop = Loop(channels=channels).run(12)
    held = {name: loop.sidecar.multipliers(name) for name in channels}
    vanish(loop.model)
    for layer in loop.model.layers:  # a user who pruned attention trains the rest
        layer.forward = lambda x, layer=layer: x + layer.mlp.down_proj(x).tanh()
    loop.optimizer = torch.optim.Adam([p for p in loop.model.parameters() if p.numel()], lr=1e-2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.run(20)
    assert len([w for w in caught if w.category is RuntimeWarning]) == len(channels)
    json.dumps(loop.sidecar.record(), allow_nan=False)
    assert {name: loop.sidecar.multipliers(name) for name in channels} == held
    assert all(parameter.isfinite().all() for parameter in loop.model.parameters())
