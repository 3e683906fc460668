"""Our decay step and schedules against torch's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import nn

from orchestrator.config.schema import OptimConfig, Schedule
from orchestrator.training.optimizer import DecoupledAdamW, learning_rate


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 5))


def _gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_equal_rates_are_torch_adamw_bit_for_bit() -> None:
    ours, theirs = _model(), _model()
    config = OptimConfig(weight_decay=0.3)
    optimizer = DecoupledAdamW(ours, config)
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}],
        betas=(config.beta1, config.beta2), eps=config.eps, fused=True,
    )  # fmt: skip
    for step in range(20):
        lr = learning_rate(config, step, 20)
        _gradients(ours, step)
        _gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = lr
        optimizer.step(lr)
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_encloses_the_step_is_told_its_learning_rate_and_replaces_the_decay() -> None:
    plain, enclosed = _model(), _model()
    config = OptimConfig(lr=0.01, weight_decay=1.0)
    one, other = DecoupledAdamW(plain, config), DecoupledAdamW(enclosed, config)
    told: list[tuple[float, bool]] = []

    @contextmanager
    def around(lr: float) -> Iterator[None]:
        before = enclosed[2].weight.clone()  # type: ignore[union-attr,operator]
        yield
        told.append((lr, torch.equal(before, enclosed[2].weight)))  # type: ignore[union-attr,arg-type]

    start = copy.deepcopy(dict(plain.named_parameters()))
    for model, optimizer, applied in ((plain, one, None), (enclosed, other, around)):
        _gradients(model, 0)
        optimizer.step(0.005, applied)
    assert told == [(0.005, False)]
    for name, parameter in enclosed.named_parameters():
        decayed = 0.005 * start[name] if parameter.ndim >= 2 else 0.0
        torch.testing.assert_close(dict(plain.named_parameters())[name], parameter - decayed)


def test_moments_survive_a_round_trip_bitwise() -> None:
    model = _model()
    optimizer = DecoupledAdamW(model, OptimConfig())
    assert optimizer.tensors() == {}
    for step in range(3):
        _gradients(model, step)
        optimizer.step(0.01)
    twin = _model()
    twin.load_state_dict(model.state_dict())
    resumed = DecoupledAdamW(twin, OptimConfig())
    resumed.load({k: v.clone() for k, v in optimizer.tensors().items()}, 3)
    for m, o in ((model, optimizer), (twin, resumed)):
        _gradients(m, 9)
        o.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("steps", [10, 1000])
def test_cosine_is_torchs_after_the_warm_up(steps: int) -> None:
    config = OptimConfig(lr=0.5, warmup_steps=5, min_lr_ratio=0.1)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - 5, eta_min=0.05)
    for step in range(5, steps):
        assert learning_rate(config, step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        reference.step()
    assert [learning_rate(config, s, steps) for s in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_wsd_is_flat_then_linear_to_its_floor() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=10, schedule=Schedule.wsd, decay_fraction=0.2, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[10:81] == [1.0] * 71
    drops = [a - b for a, b in pairwise(rates[80:])]
    assert drops == pytest.approx([0.9 / 20] * 19)
    assert rates[-1] == pytest.approx(0.1 + 0.9 / 20)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_restored_optimizer_goes_on_where_its_parameters_are() -> None:
    model = _model().cuda()
    first = DecoupledAdamW(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.step(1e-3)
    copied = copy.deepcopy(model)
    second = DecoupledAdamW(copied, OptimConfig())
    second.load({name: tensor.cpu() for name, tensor in first.tensors().items()}, 1)
    for optimizer in (first, second):
        optimizer.step(1e-3)
    assert all(map(torch.equal, model.parameters(), copied.parameters()))
