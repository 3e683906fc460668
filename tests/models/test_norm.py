"""RMSNorm against torch's, its formula and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.norm import PlainRMSNorm, RMSNorm


@pytest.mark.parametrize("size", [(3, 5, 16), (1, 16), (16,), (2, 0, 16)])
def test_values_and_gradients_equal_torch_s(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(16, 1e-3)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(size).requires_grad_()
    gradient = torch.randn(size)
    ours, theirs = norm(x), F.rms_norm(x, (16,), norm.weight, 1e-3)
    torch.testing.assert_close(ours, theirs)
    inputs = [x, norm.weight]
    for a, b in zip(
        torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(theirs, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: PlainRMSNorm.apply(x, w, 0.1), inputs)  # type: ignore[no-untyped-call]


def test_zeros_stay_zero_and_their_gradient_finite() -> None:
    norm = RMSNorm(8, 1e-6)
    x = torch.zeros(2, 8, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert not out.any()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((2, 8), 1e3))  # 1/√ε


def test_half_precision_is_computed_in_float32() -> None:
    x = torch.full((1, 4), 300.0, dtype=torch.float16)  # its square overflows float16
    out = RMSNorm(4, 1e-6)(x)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, torch.ones_like(out))


def test_strided_rows_are_read_and_stay() -> None:
    x = torch.randn(4, 3, 16)[..., ::2]
    before = x.clone()
    torch.testing.assert_close(RMSNorm(8, 1e-6)(x), F.rms_norm(x, (8,), eps=1e-6))
    assert torch.equal(x, before)


def test_a_narrow_scale_is_computed_in_float32_too() -> None:
    norm = RMSNorm(16, 1e-5).bfloat16()
    x = torch.randn(3, 16, requires_grad=True)
    norm(x).sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == torch.bfloat16


def test_a_backward_pass_inside_autocast_stays_float32() -> None:
    norm, gradient = RMSNorm(64, 1e-6), torch.randn(8, 64)
    x = torch.randn(8, 64, requires_grad=True)
    (outside,) = torch.autograd.grad(norm(x), x, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        (inside,) = torch.autograd.grad(norm(x), x, gradient)
    torch.testing.assert_close(inside, outside)
