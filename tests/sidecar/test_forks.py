"""Forks of the run: they leave no trace, they train what the run would, and the run learns from them."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidecar import Sidecar
from sidecar.bias import HorizonBias
from sidecar.channels import DecayChannel
from sidecar.channels.channel import Arithmetic
from sidecar.fork import forked
from sidecar.settings import Settings
from tests.naming import naming
from tests.sidecar.loop import Model, X, Y, equal

COEFFICIENTS = {"decay": {"amount": 0.1, "depth": -0.2}}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),  # no state before the first step
    "plain": lambda p: torch.optim.SGD(p, lr=1e-2),  # never any
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam([{"params": list(p), "lr": torch.tensor(1e-2)}], foreach=False),
}


class Noisy(Model):
    """With buffers that training moves, and random numbers in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(self.norm(x), 0.2, self.training))


class Run:
    """A user's loop, which is its own rollout: batches are a function of the step."""

    def __init__(self, kind: str = "adam", model: type[nn.Module] = Model, **settings: Any) -> None:
        torch.manual_seed(1)
        self.model = model()
        self.optimizer = OPTIMIZERS[kind](self.model.parameters())
        forks = settings.get("credit", "forks") == "forks" and settings.get("mode", "learn") == "learn"
        defaults = {
            "lr": 1e-2, "weight_decay": 2.0, "seed": 0, "interval": 6, "steps": 31, "credit": "forks", "pairs": 1,
            "horizon": 0.5, "policy_lr": 1.0, "coefficients": COEFFICIENTS, "optimizer": self.optimizer,
            "rollout": self.train if forks else None, "bounds": {"decay": (0.1, 4.0)} if forks else None,
        }  # fmt: skip
        self.sidecar = Sidecar(self.model, self.heldout, **defaults | settings)
        self.step = 0
        self.decided: list[Any] = []

    def heldout(self, interval: int) -> Tensor:
        self.model.eval()
        loss = F.mse_loss(self.model(X[32:]), Y[32:])
        self.model.train()
        return loss

    def train(self, step: int, count: int) -> None:
        for at in range(step, step + count):
            if self.sidecar.before_step(at):
                self.decided.append(self.sidecar.record())
            self.optimizer.zero_grad(set_to_none=at % 2 == 0)
            rows = torch.arange(at * 8, at * 8 + 8) % 32
            F.mse_loss(self.model(X[rows]), Y[rows]).backward()
            with self.sidecar.applied(1e-2):
                self.optimizer.step()

    def run(self, count: int) -> Run:
        self.train(self.step, count)
        self.step += count
        return self

    def tensors(self) -> list[Tensor]:
        return [t.detach().clone() for t in (*self.model.parameters(), *self.model.buffers())]


@pytest.mark.parametrize("model", [Model, Noisy])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_whose_forks_teach_nothing_is_the_run_without_forks_bit_for_bit(optimizer: str, model: type) -> None:
    forking, drawn = Run(optimizer, model, policy_lr=0.0).run(31), torch.rand(3)
    plain, expected = Run(optimizer, model, mode="replay").run(31), torch.rand(3)
    assert forking.sidecar.source.steps > 31
    assert equal(forking.tensors(), plain.tensors())
    assert torch.equal(drawn, expected)
    assert forking.sidecar.multipliers("decay") == plain.sidecar.multipliers("decay")


@pytest.mark.parametrize("cut", [0, 6, 13])
@pytest.mark.parametrize("terms", [{"amount": 0.1, "depth": -0.2}, {"time": 0.3, "down_proj_x_depth": 0.0}])
def test_resume_is_bitwise(cut: int, terms: dict[str, float]) -> None:
    settings = {"coefficients": {"decay": terms}}
    whole, first, second = Run(**settings).run(31), Run(**settings).run(cut), Run(**settings)
    saved = json.loads(json.dumps(first.sidecar.state_dict(), allow_nan=False))
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.sidecar.load_state_dict(saved, first.sidecar.tensors())
    second.step = cut
    second.run(31 - cut)
    assert first.decided + second.decided == whole.decided
    assert equal(second.tensors(), whole.tensors())
    assert second.sidecar.state_dict() == whole.sidecar.state_dict()


def test_each_fork_is_the_run_that_plays_its_coefficients() -> None:
    """From step 0 to the end, terms of time included; the short horizon is the loss after 20 steps."""
    terms = {"amount": 0.0, "time": 0.2}
    run = Run(coefficients={"decay": terms}, horizon=100.0, pairs=2).run(1)
    for number, (short, full) in enumerate(run.decided[0]["differences"]):
        losses = []
        for c in Run(coefficients={"decay": terms}).sidecar.source.policy.pair(run.sidecar.source.policy.noise(number)):
            played = Run(mode="replay", coefficients={"decay": dict(zip(terms, c.tolist(), strict=True))})
            losses.append([played.run(count).heldout(0).item() for count in (20, 11)])
        assert [short, full] == pytest.approx([losses[1][i] - losses[0][i] for i in (0, 1)], abs=1e-9)


def test_forks_go_on_to_the_end_of_the_run_and_no_further_and_are_counted() -> None:
    run = Run(pairs=2, horizon=0.5).run(31)  # 0.5 memories of 50 steps
    assert [d["step"] for d in run.decided] == [0, 6, 12, 18, 24, 30]
    lengths = [25, 25, 19, 13, 7, 1]
    assert [d["fork_steps"] for d in run.decided] == [4 * sum(lengths[: i + 1]) for i in range(6)]
    assert [d["evaluations"] for d in run.decided] == [8, 16, 20, 24, 28, 32]  # twice where the horizon is past 20
    assert [run.sidecar.source.cost(d["step"])[0] for d in run.decided] == [4 * n for n in lengths]
    assert sum(run.sidecar.source.cost(d["step"])[1] for d in run.decided) == 32
    assert [d["differences"][0][0] is None for d in run.decided] == [False] * 2 + [True] * 4
    assert run.decided[-1]["bias"]["pairs"] == 4
    assert run.decided[0]["coefficients"] != run.decided[1]["coefficients"]


def test_the_mean_moves_to_what_the_forks_prefer() -> None:
    """Held-out loss here: the size of the weights; more decay is better, and all forks see it."""
    run = Run(steps=120, interval=20, coefficients={"decay": {"amount": 0.0}})
    weights = list(run.model.parameters())
    run.sidecar.evaluation.heldout_loss = lambda k: torch.stack([w.square().sum() for w in weights]).sum()
    amounts = [d["coefficients"]["decay"]["amount"] for d in run.run(120).decided]
    assert amounts == sorted(amounts)
    assert amounts[-1] > 0.3


def test_a_state_is_restored_whatever_the_fork_did() -> None:
    model = Noisy()
    optimizer = OPTIMIZERS["nadam"](model.parameters())
    model(X).sum().backward()
    before, random = copy.deepcopy((model.state_dict(), optimizer.state_dict())), torch.get_rng_state()
    gradients = [p.grad for p in model.parameters()]
    values = [g.clone() for g in gradients]
    channel = DecayChannel(model, Arithmetic(1e-2, 0.5))
    channel.follow()

    def disturb() -> None:
        model(torch.rand(8, 6)).square().mean().backward()
        channel.before_update(1e-2)
        optimizer.step()
        optimizer.param_groups[0]["lr"].mul_(7)
        optimizer.param_groups[0]["betas"] = (0.1, 0.2)
        model.eval()

    for ends in (lambda: None, lambda: 1 / 0):
        try:
            with forked(model, optimizer, [channel]):
                disturb()
                assert optimizer.state
                ends()
        except ZeroDivisionError:
            pass
        assert not optimizer.state
        assert all(trace.eq(0).all() for trace in channel.memory().values())
        assert all(module.training for module in model.modules())
        assert torch.equal(torch.get_rng_state(), random)
        assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
        assert equal(gradients, values)
        assert str(optimizer.state_dict()) == str(before[1])
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before[0].values(), strict=True))


FORKED = ("horizon", "pairs")  # settings of forks alone


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rollout": None}, ["'forks'", "rollout="]),
        ({"optimizer": None}, ["'forks'", "optimizer="]),
        ({"coefficients": None}, ["'forks'", "coefficients="]),
        ({"weight_decay": 0.0}, ["'forks'", "weight_decay=0"]),
        ({"horizon": 0.0}, ["horizon=0.0"]),
        ({"horizon": math.inf}, ["horizon=inf"]),
        ({"pairs": 0}, ["pairs=0"]),
        ({"steps": None, "coefficients": {"decay": {"time": 0.0}}}, ["'time'", "steps"]),
        ({"coefficients": {"decay": {"deepness": 0.0}}}, ["'deepness'", "depth"]),
        ({"coefficients": {"lr_scale": {"depth": 0.0}}}, ["'decay'", "'lr_scale'"]),
        ({"coefficients": {"decay": {"depth": math.nan}}}, ["depth=nan"]),
        ({"credit": "joint", "coefficients": None}, ["horizon=0.5", "'joint'"]),
        (
            {"credit": "joint", "coefficients": None, "rollout": print} | {k: getattr(Settings, k) for k in FORKED},
            ["rollout", "'joint'"],
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValueError, match=naming(*named)) as error:
        Run(**settings)
    assert "\n" not in str(error.value)


def test_other_terms_do_not_resume() -> None:
    state = Run().run(7).sidecar.state_dict()
    with pytest.raises(ValueError, match=naming("decay.depth", "decay.ends")):
        Run(coefficients={"decay": {"amount": 0.1, "ends": -0.2}}).sidecar.load_state_dict(state, {})


def test_a_rollout_in_which_multipliers_do_nothing_is_refused_at_once() -> None:
    run = Run()
    run.sidecar.source.rollout = lambda step, count: None
    before = run.tensors()
    with pytest.raises(ValueError, match=naming("applied", "rollout")):
        run.run(1)
    assert equal(run.tensors(), before)


def test_a_rollout_that_fails_at_first_is_an_error_and_later_a_warning() -> None:
    run, failing = Run(policy_lr=0.0), [True]

    def rollout(step: int, count: int) -> None:
        run.train(step, count)
        if failing[0]:
            raise KeyError("no such file")

    run.sidecar.source.rollout = rollout
    before = run.tensors()
    with pytest.raises(KeyError, match="no such file"):
        run.run(1)
    assert equal(run.tensors(), before)
    assert not run.optimizer.state
    failing[0] = False
    run.run(6)
    failing[0] = True
    with pytest.warns(RuntimeWarning, match=naming("KeyError", "no such file")):
        run.run(24)
    assert run.decided[-1]["differences"] == []
    plain = Run(mode="replay", policy_lr=0.0).run(31)
    assert equal(run.run(1).tensors(), plain.tensors())


def test_a_fork_that_diverges_does_not_count() -> None:
    run = Run().run(1)
    run.sidecar.source.rollout = lambda step, count: run.model.head.weight.data.fill_(math.nan)
    mean = run.sidecar.source.policy.mean.clone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.run(6)
    assert [w.category for w in caught] == [RuntimeWarning]
    assert torch.equal(run.sidecar.source.policy.mean, mean)
    assert run.decided[-1]["differences"] == [[None, None]]
    json.dumps(run.sidecar.state_dict(), allow_nan=False)
    assert all(t.isfinite().all() for t in run.tensors())


def test_the_bias_is_the_share_that_disagrees_and_pearsons_r() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, dtype=torch.float64, generator=draw)
    y = 0.3 * x + torch.randn(50, dtype=torch.float64, generator=draw)
    bias = HorizonBias()
    for short, full in [*zip(x.tolist(), y.tolist(), strict=True), (None, 1.0), (1.0, None)]:
        bias.add(short, full)
    assert bias.pairs == 50
    assert bias.share == pytest.approx((x.sign() != y.sign()).double().mean().item())
    assert bias.r == pytest.approx(torch.corrcoef(torch.stack([x, y]))[0, 1].item())
    again = HorizonBias()
    again.load_state_dict(json.loads(json.dumps(bias.state_dict())))
    assert again == bias
    few = HorizonBias()
    assert few.summary() == {"pairs": 0, "share": None, "r": None}
    for _ in range(5):
        few.add(1.0, -2.0)
    assert (few.share, few.r) == (1.0, None)
