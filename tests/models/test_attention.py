"""Attention by hand against torch's kernels, a plain formula and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models import attention
from models.attention import Attention, Rope, ShortAttention, rope_tables, rotate
from models.spec import LayerShape

WIDTH = 20
SHAPES = {  # (heads, kv_heads, head_dim, T)
    "equal heads": (4, 4, 8, 96),
    "grouped": (6, 2, 4, 65),
    "one key head": (3, 1, 6, 128),
    "one position": (2, 2, 8, 1),
    "one block and a position": (2, 1, 2, attention.BLOCK + 1),
    "longest": (1, 1, 4, attention.SHORT),
}


def drawn(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> tuple[Attention, Tensor, Rope]:
    heads, kv_heads, dim, length = shape
    torch.manual_seed(0)
    module = Attention(LayerShape(WIDTH, heads, kv_heads, dim, 8)).to(dtype)
    rope = rope_tables(length, dim, 100.0, torch.device("cpu"))
    return module, torch.randn(2, length, WIDTH, dtype=dtype), (rope[0].to(dtype), rope[1].to(dtype))


def formula(module: Attention, x: Tensor, rope: Rope) -> Tensor:
    """Softmax(q·k / √d + mask)·v, head by head and position by position."""
    dim = module.head_dim
    cos, sin = rope

    def turned(rows: Tensor) -> Tensor:  # [T, dim]
        swapped = torch.cat((rows[:, dim // 2 :], rows[:, : dim // 2]), dim=1)
        return rows * cos.T + swapped * sin.T

    rows = []
    for row in x:
        q, k, v = (row @ p.weight.T for p in (module.q_proj, module.k_proj, module.v_proj))
        group = q.shape[1] // k.shape[1]
        found = []
        for head in range(q.shape[1] // dim):
            at, kv = slice(head * dim, (head + 1) * dim), slice(head // group * dim, (head // group + 1) * dim)
            scores = turned(q[:, at]) @ turned(k[:, kv]).T / math.sqrt(dim)
            share = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf).softmax(-1)
            found.append(share @ v[:, kv])
        rows.append(torch.cat(found, dim=1))
    return torch.stack(rows)


def short(module: Attention, x: Tensor, rope: Rope) -> Tensor:
    mixed: Tensor = ShortAttention.apply(  # type: ignore[no-untyped-call]
        x, module.q_proj.weight, module.k_proj.weight, module.v_proj.weight, *rope
    )
    return mixed


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_equal_the_formula_s(shape: tuple[int, int, int, int]) -> None:
    module, x, rope = drawn(shape, torch.float64)
    x.requires_grad_()
    parameters = [x, module.q_proj.weight, module.k_proj.weight, module.v_proj.weight]
    ours, theirs = short(module, x, rope), formula(module, x, rope)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
    gradient = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, parameters, gradient), torch.autograd.grad(theirs, parameters, gradient), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_gradients_are_those_of_finite_differences() -> None:
    module, x, rope = drawn((4, 2, 4, 7), torch.float64)
    weights = [module.q_proj.weight, module.k_proj.weight, module.v_proj.weight]
    inputs = (x.requires_grad_(), *weights)
    assert torch.autograd.gradcheck(lambda *tensors: ShortAttention.apply(*tensors, *rope), inputs)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_module_computes_the_same_on_either_path(
    shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x, rope = drawn(shape)
    by_hand = module(x, rope)
    monkeypatch.setattr(attention, "SHORT", 0)
    torch.testing.assert_close(module(x, rope), by_hand, atol=2e-6, rtol=1e-5)


def test_which_path_a_module_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, rope = drawn((2, 2, 8, 16))
    taken: list[str] = []
    for name in ("_mixed", "_mixed_short"):
        monkeypatch.setattr(
            module, name, lambda x, rope, name=name: taken.append(name) or x.new_zeros(2, x.shape[1], 16)
        )
    module(x, rope)
    with torch.autocast("cpu", torch.bfloat16):
        module(x, rope)
    module.double()(x.double(), rope)
    module.float()(torch.randn(2, attention.SHORT + 1, WIDTH), rope)
    assert taken == ["_mixed_short", "_mixed", "_mixed", "_mixed"]


def test_a_frozen_input_costs_no_gradient() -> None:
    module, x, rope = drawn((2, 2, 8, 16))
    module(x, rope).sum().backward()
    assert module.q_proj.weight.grad is not None
    assert x.grad is None


def test_a_strided_gradient_counts_as_a_contiguous_one() -> None:
    module, x, rope = drawn((2, 2, 8, 16))
    gradient = torch.randn(16, 2, 16)
    found = [
        torch.autograd.grad(short(module, x, rope), module.q_proj.weight, g)[0]
        for g in (gradient.transpose(0, 1), gradient.transpose(0, 1).contiguous())
    ]
    assert torch.equal(*found)


def test_large_scores_stay_finite() -> None:
    module, x, rope = drawn((2, 2, 8, 70))
    out = module(x.mul(1e4).requires_grad_(), rope)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_rotation_keeps_length_and_depends_on_the_distance_alone() -> None:
    rope = rope_tables(30, 8, 100.0, torch.device("cpu"))
    q, k = torch.randn(8), torch.randn(8)
    turned_q, turned_k = (rotate(v.expand(1, 30, 1, 8), rope)[0, :, 0] for v in (q, k))
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(30))
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[7, 3], scores[24, 20])
    assert not torch.isclose(scores[7, 3], scores[7, 4])


def test_a_pass_without_values_leaves_nothing_behind() -> None:
    module, x, rope = drawn((2, 2, 8, 16))
    with FakeTensorMode(allow_non_fake_inputs=True):
        module(torch.empty(2, 16, WIDTH), rope)
    torch.testing.assert_close(short(module, x, rope), formula(module, x, rope))
