"""Each channel acts on its parameters as defined, and checks its bounds."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig, Olmo2Config

from models.transformer import Decoder, init_weights
from models.width import build_spec
from sidecar.channels import CHANNELS, Arithmetic, Channel
from tests.naming import naming

ARITHMETIC = Arithmetic(lr=1e-2, weight_decay=0.5)


def decoder(norm: str = "pre", layers: int = 3) -> Decoder:
    spec = build_spec(layers=layers, width=16, head_dim=8, ffn_ratio=2.0, vocab_size=32, norm=norm, seq_len=16)
    model = Decoder(spec)
    init_weights(model, 0)
    return model


def channel(name: str, model: nn.Module) -> Channel:
    return CHANNELS[name](model, ARITHMETIC)


def train_step(model: Decoder, optimizer: torch.optim.Optimizer, *channels: Channel, lr: float = 1e-2) -> None:
    rows = torch.randint(32, (2, 17), generator=torch.Generator().manual_seed(1))
    optimizer.zero_grad()
    model.loss(rows).backward()
    for one in channels:
        one.before_update(lr)
    optimizer.step()
    for one in channels:
        one.after_update()


def test_units_of_decay_are_the_matrices_in_layers_and_outside() -> None:
    units = channel("decay", decoder()).units
    assert [(u.name, u.kind) for u in units if u.layer is None] == [("model.embed_tokens.weight", "embedding")]
    assert len(units) == 3 * 7 + 1
    assert {u.name: (u.kind, u.layer, u.depth, u.size) for u in units}["model.layers.1.mlp.down_proj.weight"] == (
        "mlp.down_proj.weight", 1, 0.5, 16 * 32,
    )  # fmt: skip
    assert channel("decay", nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))).units[1].name == "2.weight"
    assert channel("decay", nn.Sequential(nn.Linear(2, 2))).units[0].depth == 0.0


def test_decay_equals_torchs_adamw_with_a_weight_decay_per_tensor() -> None:
    ours, theirs = decoder(), decoder()
    decay = channel("decay", ours)
    names = [unit.name for unit in decay.units]
    multipliers = torch.linspace(0.2, 4, len(names)).tolist()
    decay.set(multipliers)
    by_name = dict(zip(names, multipliers, strict=True))
    groups = [
        {"params": [p], "weight_decay": 0.5 * by_name.get(name, 1.0) if p.ndim >= 2 else 0.0}
        for name, p in theirs.named_parameters()
    ]
    adam, adamw = torch.optim.Adam(ours.parameters(), lr=1e-2), torch.optim.AdamW(groups, lr=1e-2)
    for _ in range(3):
        train_step(ours, adam, decay)
        train_step(theirs, adamw)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_cautious_decay_spares_what_the_step_led_away_from_zero() -> None:
    """Entry by entry, against the publication's formula, with a multiplier, a factor of the rate and a scaled step."""
    start = [0.5, -0.5, 0.5, -0.5, 0.5, 0.0, 0.01]
    update = [0.1, 0.1, -0.1, -0.1, 0.0, 0.3, 5.0]  # of gradient descent; the last one crosses zero
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(7, 1, bias=False, dtype=torch.float64)])
    weight, lr = model.layers[0].weight, 0.1
    weight.data, weight.grad = torch.tensor([start], dtype=torch.float64), torch.tensor([update], dtype=torch.float64)
    arithmetic = Arithmetic(lr, 0.5, decay="cautious", lr_factors={"layers.0.weight": 2.0})
    decay, scale = (CHANNELS[name](model, arithmetic) for name in ("decay", "lr_scale"))
    decay.follow()
    decay.set([1.5])
    scale.set([0.5])
    decay._traces[0].fill_(3.0)  # type: ignore[attr-defined]
    decay.before_update(lr)
    scale.before_update(lr)
    torch.optim.SGD(model.parameters(), lr=2 * lr).step()
    scale.after_update()
    decay.after_update()
    rows = list(zip(start, update, strict=True))
    masks = [float(w * u >= 0) for w, u in rows]
    assert masks == [1, 0, 0, 1, 1, 1, 1]
    share = 2 * lr * 0.5 * 1.5
    expected = [w - 0.5 * 2 * lr * u - share * mask * w for (w, u), mask in zip(rows, masks, strict=True)]
    assert weight.flatten().tolist() == pytest.approx(expected, abs=1e-12)
    traced = [3.0 + share * mask * (w - 3.0) for (w, _), mask in zip(rows, masks, strict=True)]
    assert decay.memory()["layers.0.weight"].flatten().tolist() == pytest.approx(traced, abs=1e-12)


def test_cautious_decay_sees_steps_whose_product_with_the_weight_underflows() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1e-30, -1e-30]])
    model[0].weight.grad = torch.tensor([[-1e-30, -1e-30]])
    decay = CHANNELS["decay"](model, Arithmetic(1e-2, 2.5, decay="cautious"))
    decay.before_update(1e-2)
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    decay.after_update()
    moved = model[0].weight.detach().double() / 1e-30
    torch.testing.assert_close(moved, torch.tensor([[1.01, -0.99 + 0.025]]).double(), rtol=1e-5, atol=0)


def test_lr_scale_equals_a_learning_rate_per_layer() -> None:
    ours, theirs = decoder(), decoder()
    scale = channel("lr_scale", ours)
    assert [(u.name, u.layer) for u in scale.units] == [(f"model.layers.{i}", i) for i in range(3)]
    scale.set([0.5, 1.0, 1.7])
    groups = [
        {"params": [p], "lr": 1e-2 * ([0.5, 1.0, 1.7][int(name.split(".")[2])] if "layers" in name else 1.0)}
        for name, p in theirs.named_parameters()
    ]
    adam, reference = torch.optim.Adam(ours.parameters(), lr=1e-2), torch.optim.Adam(groups)
    for _ in range(3):
        train_step(ours, adam, scale)
        train_step(theirs, reference)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CHANNELS)
def test_a_multiplier_of_one_is_bitwise_no_multiplier(name: str) -> None:
    pressed, plain = decoder(), decoder()
    one = channel(name, pressed)
    decay = [] if name == "decay" else [channel("decay", pressed)]
    reference = channel("decay", plain)
    a, b = torch.optim.Adam(pressed.parameters(), lr=1e-2), torch.optim.Adam(plain.parameters(), lr=1e-2)
    for _ in range(4):
        train_step(pressed, a, *decay, one)
        train_step(plain, b, reference)
    assert all(torch.equal(x, y) for x, y in zip(pressed.parameters(), plain.parameters(), strict=True))


def test_residual_gain_scales_what_each_branch_writes() -> None:
    for norm in ("pre", "sandwich"):
        model = decoder(norm)
        gains = [0.5, 1.3, 1.0, 2.0, 0.7, 1.1]
        layer, x = model.model.layers[0], torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
        rope = model.model.rope(5, 8, x.device)
        attention, ffn = layer.attention_branch(x, rope), layer.ffn_branch(x)
        one = channel("residual_gain", model)
        one.set(gains)
        torch.testing.assert_close(layer.attention_branch(x, rope), attention * 0.5)
        torch.testing.assert_close(layer.ffn_branch(x), ffn * 1.3)
        assert [u.kind for u in one.units] == ["attention", "ffn"] * 3


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32, "intermediate_size": 32}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=2),
        Olmo2Config(**SMALL),
        GPTNeoXConfig(**SMALL),
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32),
    ],
    ids=lambda config: type(config).__name__,
)
def test_gains_of_zero_silence_the_layers_of_anybodys_model(config: object) -> None:
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states
        assert not torch.equal(states[0], states[1])
        one = channel("residual_gain", model)
        assert len(one.units) == 4
        one.set([0.0] * 4)
        states = model(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "way"), [*((name, "decoupled") for name in CHANNELS), ("decay", "cautious")])
def test_slope_is_the_derivative_of_the_reward(name: str, way: str) -> None:
    """Against central differences over whole training steps of a model in double precision."""
    rows = torch.randint(32, (4, 17), generator=torch.Generator().manual_seed(2))

    def after(logs: list[float]) -> tuple[float, torch.Tensor]:
        model = decoder().double()
        one = CHANNELS[name](model, replace(ARITHMETIC, decay=way))
        if name == "residual_gain":
            one.gains = one.gains.double()  # type: ignore[attr-defined]
        one.follow()
        one.set([math.exp(x) for x in logs])
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        if name != "residual_gain":  # gains are judged where they are, not by what training makes of them
            train_step(model, optimizer, one, lr=1e-3)
        inputs = one.tensors()
        for tensor in inputs:
            tensor.requires_grad_(True)
        loss = model.loss(rows).double()
        return loss.item(), one.slope(torch.autograd.grad(loss, inputs, allow_unused=True)).double()

    units = len(channel(name, decoder()).units)
    start = torch.linspace(-0.3, 0.3, units).tolist()
    _, credit = after(start)
    step = 0.1  # the loss is computed in float32
    for index in range(0, units, max(1, units // 6)):
        high, low = list(start), list(start)
        high[index] += step
        low[index] -= step
        reward_slope = (after(low)[0] - after(high)[0]) / (2 * step)
        assert credit[index].item() == pytest.approx(reward_slope, rel=0.05, abs=3e-6), index


def test_slope_of_decay_is_exact_over_many_steps_where_the_loss_is_linear() -> None:
    """A linear loss has no curvature to leave out; against central differences over twenty steps."""
    target = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def after(log: float) -> tuple[float, torch.Tensor]:
        model = nn.Sequential(nn.Linear(4, 3, bias=False, dtype=torch.float64))
        nn.init.constant_(model[0].weight, 0.7)
        decay = CHANNELS["decay"](model, Arithmetic(1e-2, 2.5))
        decay.follow()
        decay.set([math.exp(log)])
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (model[0].weight * target).sum().backward()
            decay.before_update(1e-2)
            optimizer.step()
        loss = (model[0].weight * target.flip(0)).sum()
        return loss.item(), decay.slope(torch.autograd.grad(loss, decay.tensors()))

    for log in (-1.0, 0.0, 1.2):
        measured = (after(log - 1e-4)[0] - after(log + 1e-4)[0]) / 2e-4
        assert after(log)[1].item() == pytest.approx(measured, rel=1e-5)


def test_slope_of_decay_sees_what_a_norm_behind_the_matrix_hides() -> None:
    """Behind a norm a matrix's scale changes nothing; that its older part fades faster than its newer one does."""
    rows = torch.randint(32, (8, 17), generator=torch.Generator().manual_seed(2))
    behind_a_norm = ("o_proj.weight", "v_proj.weight", "up_proj.weight", "down_proj.weight")

    def after(logs: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
        model = decoder("sandwich", layers=2).double()
        decay = channel("decay", model)
        decay.follow()
        decay.set(logs.exp().tolist())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(20):
            train_step(model, optimizer, decay, lr=1e-2)
        loss = model.loss(rows)
        gradients = torch.autograd.grad(loss, decay.tensors())
        as_it_is = torch.stack([(g * w).sum() for g, w in zip(gradients, decay.tensors(), strict=True)])
        return loss.item(), decay.slope(gradients).double(), as_it_is.detach()

    units = channel("decay", decoder("sandwich", layers=2)).units
    start = torch.zeros(len(units), dtype=torch.float64)
    _, slopes, as_it_is = after(start)
    hidden = [index for index, unit in enumerate(units) if unit.kind.endswith(behind_a_norm)]
    nudges = 0.5 * torch.eye(len(units), dtype=torch.float64)[hidden]
    measured = torch.tensor([after(-nudge)[0] - after(nudge)[0] for nudge in nudges])  # the nudges are 1 apart
    assert torch.corrcoef(torch.stack([slopes[hidden], measured.double()]))[0, 1] > 0.9
    assert as_it_is[hidden].abs().max() < 0.05 * measured.abs().max()


@pytest.mark.parametrize(
    ("name", "largest", "arithmetic", "named"),
    [
        ("decay", 10.0, Arithmetic(0.02, 0.5), ["'decay'", "0.1", "0.02 · 0.5 · 10", "bounds.decay"]),
        ("decay", math.inf, Arithmetic(0.02, 0.5), ["'decay'", "inf", "bounds.decay"]),
        ("lr_scale", 2.0, Arithmetic(0.02, 0.1), ["'lr_scale'", "0.04", "0.02 · 2", "lr_max=0.02"]),
        ("lr_scale", 2.0, Arithmetic(0.01, 0.1, eps=0.0), ["'lr_scale'", "inf", "ε=0", "eps"]),
        ("lr_scale", 2.0, Arithmetic(0.01, 0.1, eps=1e-24), ["'lr_scale'", "ε=1e-24", "eps"]),
        ("lr_scale", 2.0, Arithmetic(0.01, 0.1, eps=4e-22), ["'lr_scale'", "0.0592", "ε=4e-22", "eps"]),
        ("decay", 1.0, Arithmetic(0.02, 0.5, lr_factors={"a": 10.0}), ["'decay'", "0.1", "0.2 · 0.5 · 1"]),
        ("lr_scale", 1.0, Arithmetic(0.02, 0.5, lr_factors={"a": 10.0}), ["'lr_scale'", "0.2", "lr_max=0.02"]),
        ("residual_gain", 2.1, ARITHMETIC, ["'residual_gain'", "2.1", "2", "bounds.residual_gain"]),
    ],
)
def test_bounds_are_checked_against_the_arithmetic_they_feed(
    name: str, largest: float, arithmetic: Arithmetic, named: list[str]
) -> None:
    one = CHANNELS[name](decoder(), arithmetic)
    with pytest.raises(ValueError, match=naming(*named)):
        one.check(largest, arithmetic)


def test_safe_bounds_pass() -> None:
    for name, kind in CHANNELS.items():
        kind(decoder(), ARITHMETIC).check(kind.bounds[1], ARITHMETIC), name


def test_a_stuck_parameter_of_the_smallest_gradient_moves_no_further_than_the_check_says() -> None:
    weight = nn.Parameter(torch.zeros(1))
    for eps, moves in ((1e-24, True), (1e-8, False)):
        optimizer = torch.optim.Adam([weight], lr=0.02, eps=eps, betas=(0.0, 0.0))
        weight.data.zero_()
        weight.grad = torch.full((1,), 2.6e-23)  # its square is below float32's smallest number
        optimizer.step()
        assert (abs(weight.item()) > 0.02) == moves


def test_gains_keep_the_precision_of_the_forward_pass() -> None:
    model = decoder().to(torch.bfloat16)
    channel("residual_gain", model).set([0.5] * 6)
    assert model(torch.zeros(1, 4, dtype=torch.long)).dtype == torch.bfloat16


@pytest.mark.parametrize("config", [Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=2), LlamaConfig(**SMALL)])
def test_gains_are_worked_into_parameters_only_where_that_is_the_same_function(config: object) -> None:
    model = AutoModelForCausalLM.from_config(config).eval()
    one, tokens = channel("residual_gain", model), torch.arange(6)[None]
    one.set([0.5, 1.3, 1.0, 2.0])
    with torch.no_grad():
        wanted = model(tokens).logits
        if isinstance(config, Gemma2Config):  # its norms hold γ − 1
            with pytest.raises(ValueError, match=r"post_attention_layernorm \(Gemma2RMSNorm\)"):
                one.folded()
            return
        folded = one.folded()
        one.close()
        got = torch.func.functional_call(model, folded, (tokens,)).logits
    torch.testing.assert_close(got, wanted)


def test_layers_whose_writers_are_unknown_are_refused() -> None:
    model = decoder()
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(ValueError, match=naming("'residual_gain'", "layer 1", "Decoder", "WRITERS")):
        channel("residual_gain", model)


def test_compiled_or_copied_models_keep_their_units() -> None:
    model = decoder()
    names = [u.name.removeprefix("_orig_mod.") for u in channel("decay", torch.compile(copy.deepcopy(model))).units]
    assert names == [u.name for u in channel("decay", model).units]
