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
    for step in range(3):
        sidecar.before_step(step)
    values, policy = sidecar.multipliers("decay"), sidecar.learners["decay"].policy.state_dict()
    with pytest.warns(RuntimeWarning, match=naming(*named)):
        sidecar.before_step(3)
    assert sidecar.multipliers("decay") == values
    assert sidecar.learners["decay"].policy.state_dict() == policy
    assert sidecar.record()["reward"] is None
    json.dumps(sidecar.state_dict(), allow_nan=False)
    sidecar.before_step(4)  # its interval began at an unknown loss
    assert sidecar.multipliers("decay") == values
    sidecar.before_step(5)
    assert sidecar.multipliers("decay") != values


def test_one_warning_however_often_it_fails() -> None:
    loop = Loop(lambda interval: torch.tensor(math.nan), interval=1, credit="joint")
    with pytest.warns(RuntimeWarning) as caught:
        loop.run(10)
    assert len(caught) == 1
    assert all(parameter.isfinite().all() for parameter in loop.model.parameters())


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
