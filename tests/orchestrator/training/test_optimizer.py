"""Our decay step and schedules against torch's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from models.transformer import Decoder, init_weights
from models.width import build_spec
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Decay, OptimConfig, Schedule
from orchestrator.training.optimizer import DecoupledAdamW, layer_rates, learning_rate
from sidecar import Sidecar
from tests.naming import naming


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 5))


def _gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


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


def _decoder(tied: bool = True) -> Decoder:
    spec = build_spec(layers=5, width=16, head_dim=8, ffn_ratio=2.0, vocab_size=32, seq_len=16, tie_embeddings=tied)
    model = Decoder(spec)
    init_weights(model, 0)
    return model


def _layer(name: str) -> int | None:
    return int(name.split(".")[2]) if ".layers." in name else None


@pytest.mark.parametrize(
    ("formula", "factors"),
    [({"depth": 0.5}, [-0.5, -0.25, 0, 0.25, 0.5]), ({"early": 0.3, "late": -0.3}, [0.3, 0.3, 0, -0.3, -0.3])],
)
def test_rates_of_layers_are_torchs_with_a_parameter_group_for_each(
    formula: dict[str, float], factors: list[float]
) -> None:
    ours, theirs = _decoder(), _decoder()
    config = OptimConfig(lr=0.01, weight_decay=0.5, layer_lr=formula)
    optimizer = DecoupledAdamW(ours, config)
    groups = []
    for name, parameter in theirs.named_parameters():
        layer = _layer(name)
        rate = 0.01 * (1.0 if layer is None else math.exp(factors[layer]))
        groups.append({"params": [parameter], "lr": rate, "weight_decay": 0.5 if parameter.ndim >= 2 else 0.0})
    reference = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    for step in range(5):
        _gradients(ours, step)
        _gradients(theirs, step)
        optimizer.step(0.01)
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
    assert len(optimizer.adam.param_groups) == len({1.0, *map(math.exp, factors)})


def test_factors_of_one_are_bit_for_bit_no_factors() -> None:
    plain, scaled = _decoder(), _decoder()
    one = DecoupledAdamW(plain, OptimConfig(weight_decay=0.5))
    other = DecoupledAdamW(scaled, OptimConfig(weight_decay=0.5, layer_lr={"depth": 0.0, "q_proj": 0.0}))
    for step in range(5):
        for model, optimizer in ((plain, one), (scaled, other)):
            _gradients(model, step)
            optimizer.step(0.01)
    assert all(map(torch.equal, plain.parameters(), scaled.parameters()))


def test_what_lies_outside_the_layers_keeps_its_rate_unless_it_is_named() -> None:
    model = _decoder(tied=False)
    outside = {name for name, _ in model.named_parameters() if _layer(name) is None}
    assert outside == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    by_depth = layer_rates(OptimConfig(layer_lr={"depth": 0.5, "fan_in": 0.5, "attention": 1.0}), model)
    assert {by_depth[name] for name in outside} == {1.0}
    named = layer_rates(OptimConfig(layer_lr={"embedding": 1.0, "head": -1.0, "model.norm": 0.5}), model)
    assert [math.log(named[name]) for name in sorted(outside)] == pytest.approx([-1.0, 1.0, 0.5])
    assert {factor for name, factor in named.items() if name not in outside} == {1.0}
    norm = by_depth["model.layers.0.input_layernorm.weight"]
    assert norm == pytest.approx(math.exp(-0.5))  # a vector has its layer's depth, and no inputs


@pytest.mark.parametrize(
    ("options", "named"),
    [({"layer_lr": {"deep": 1.0}}, ("optim.layer_lr", "'deep'", "depth", "q_proj")),
     ({"layer_lr": {"time_x_depth": 1.0}}, ("optim.layer_lr", "time_x_depth")),
     ({"layer_lr": {"depth": "steep"}}, ("optim.layer_lr", "depth=steep")),
     ({"layer_lr": {"head": 1.0}}, ("optim.layer_lr", "'head'")),  # which is the embedding
     ({"layer_lr": {"depth": 4.0}, "lr": 0.01, "weight_decay": 0.5}, ("optim.layer_lr", "optim.weight_decay=0.5")),
     ({"layer_lr": {"depth": 1e9}, "weight_decay": 0.0}, ("optim.layer_lr", "inf"))],
)  # fmt: skip
def test_rates_that_cannot_work_are_the_users_error(options: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=naming(*named)):
        layer_rates(OptimConfig(**options), _decoder())


def _plain_cautious(model: nn.Module, config: OptimConfig, steps: int, rate: Callable[[str], float]) -> None:
    """Adam with cautious weight decay as its publication has it, in double precision."""
    moments = {name: (0.0, 0.0) for name, _ in model.named_parameters()}
    for step in range(steps):
        _gradients(model, step)
        for name, w in model.named_parameters():
            gradient = w.grad.double()  # type: ignore[union-attr]
            first, second = moments[name]
            first = config.beta1 * first + (1 - config.beta1) * gradient
            second = config.beta2 * second + (1 - config.beta2) * gradient**2
            moments[name] = first, second
            u = first / (1 - config.beta1 ** (step + 1))
            u = u / ((second / (1 - config.beta2 ** (step + 1))).sqrt() + config.eps)
            mask = (u * w.data >= 0) * (config.weight_decay if w.ndim >= 2 else 0.0)
            w.data = w.data - rate(name) * (u + mask * w.data)


@pytest.mark.parametrize("formula", [{}, {"depth": 0.5}])
def test_cautious_decay_is_its_published_formula(formula: dict[str, float]) -> None:
    ours, theirs, usual = _decoder(), _decoder().double(), _decoder()
    config = OptimConfig(lr=0.01, weight_decay=2.0, decay=Decay.cautious, layer_lr=formula)
    optimizer, other = DecoupledAdamW(ours, config), DecoupledAdamW(usual, replace(config, decay=Decay.decoupled))
    for step in range(20):
        for model, one in ((ours, optimizer), (usual, other)):
            _gradients(model, step)
            one.step(0.01)
    factors = layer_rates(config, theirs)
    _plain_cautious(theirs, config, 20, lambda name: 0.01 * factors.get(name, 1.0))
    for mine, wanted, decoupled in zip(ours.parameters(), theirs.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=2e-6)
        assert mine.ndim < 2 or not torch.allclose(mine, decoupled, atol=1e-2)


def test_a_sidecar_that_multiplies_by_one_decays_as_the_optimizer_does() -> None:
    alone, beside = _decoder(), _decoder()
    config = OptimConfig(lr=0.01, weight_decay=1.0, decay=Decay.cautious, layer_lr={"depth": 0.4})
    factors = layer_rates(config, beside)
    sidecar = Sidecar(
        beside, lambda interval: torch.zeros(()), lr=0.01, weight_decay=1.0, seed=0, mode="fixed", decay="cautious",
        lr_factors=factors, channels=["lr_scale", "decay"],
    )  # fmt: skip
    one, other = DecoupledAdamW(alone, config), DecoupledAdamW(beside, config)
    for step in range(5):
        _gradients(alone, step)
        _gradients(beside, step)
        one.step(0.01)
        other.step(0.01, sidecar.applied)
    assert all(map(torch.equal, alone.parameters(), beside.parameters()))


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
