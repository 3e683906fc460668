"""The chunked loss of the head against torch's, which sees all logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models import head_loss as module
from models.head_loss import head_loss
from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder, init_weights

VOCAB, WIDTH = 37, 6
Loss = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split even these small losses, into chunks of 4·d = 24 tokens."""
    monkeypatch.setattr(module, "AT_ONCE", VOCAB)


def reference(hidden: Tensor, table: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    logits = F.linear(hidden, table)
    loss = F.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2),
        targets.flatten(),
        reduction=reduction,
    )
    return loss.view(targets.shape) if reduction == "none" else loss


def inputs(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(*shape, WIDTH, generator=draw, dtype=dtype).requires_grad_()
    table = torch.randn(VOCAB, WIDTH, generator=draw, dtype=dtype).requires_grad_()
    return hidden, table, torch.randint(VOCAB, shape, generator=draw)


# one token, fewer than a chunk, whole chunks, one more, and two more than a whole number of chunks
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 24), (7, 7), (5, 10)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_values_and_gradients_are_torchs(shape: tuple[int, ...], reduction: str) -> None:
    hidden, table, targets = inputs(*shape)
    slopes = torch.randn(shape, dtype=torch.float64) if reduction == "none" else torch.tensor(0.3, dtype=torch.float64)
    found: list[list[Tensor]] = []
    for loss in (head_loss, reference):
        value = loss(hidden, table, targets, reduction)
        found.append([value, *torch.autograd.grad(value, (hidden, table), slopes)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_are_those_of_finite_differences(reduction: str) -> None:
    hidden, table, targets = inputs(30)
    assert torch.autograd.gradcheck(lambda h, w: head_loss(h, w, targets, reduction), (hidden, table))


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_gradient_alone(wanted: int) -> None:
    hidden, table, targets = inputs(30)
    both = torch.autograd.grad(head_loss(hidden, table, targets), (hidden, table))
    leaves = [hidden.detach(), table.detach()]
    leaves[wanted].requires_grad_()
    (alone,) = torch.autograd.grad(head_loss(*leaves, targets), leaves[wanted])
    assert torch.equal(alone, both[wanted])


def test_a_second_pass_through_a_kept_graph_gives_the_same() -> None:
    hidden, table, targets = inputs(30)
    loss = head_loss(hidden, table, targets)
    first = torch.autograd.grad(loss, (hidden, table), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, table))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_without_gradients_the_values_are_the_same(reduction: str) -> None:
    hidden, table, targets = inputs(50)
    with torch.no_grad():
        value = head_loss(hidden, table, targets, reduction)
    assert not value.requires_grad
    torch.testing.assert_close(value, head_loss(hidden, table, targets, reduction).detach(), atol=1e-14, rtol=0)


def test_extreme_logits_stay_finite_and_right() -> None:
    hidden, table, targets = inputs(50, dtype=torch.float32)
    with torch.no_grad():
        hidden *= 1e4
    ours, theirs = (loss(hidden, table, targets) for loss in (head_loss, reference))
    torch.testing.assert_close(ours, theirs)
    assert all(g.isfinite().all() for g in torch.autograd.grad(ours, (hidden, table)))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_under_autocast_it_is_as_near_to_the_truth_as_bf16_logits_are(reduction: str) -> None:
    hidden, table, targets = inputs(500, dtype=torch.float32)
    exact = reference(hidden.double(), table.double(), targets).float()
    errors = []
    for loss in (head_loss, reference):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(hidden, table, targets, reduction)
        assert value.dtype == torch.float32
        gradients = torch.autograd.grad(value.mean(), (hidden, table))
        assert [g.dtype for g in gradients] == [torch.float32] * 2
        truth = torch.autograd.grad(exact, (hidden, table), retain_graph=True)
        errors.append([((g - t).norm() / t.norm()).item() for g, t in zip(gradients, truth, strict=True)])
        assert value.mean().item() == pytest.approx(exact.item(), rel=1e-3)
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 1.1 * theirs < 0.02


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that a result has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_tensor_holds_the_logits_of_all_tokens(reduction: str) -> None:
    hidden, table, targets = inputs(96)
    with LargestTensor() as largest:
        head_loss(hidden, table, targets, reduction).sum().backward()
    assert largest.elements == 24 * VOCAB


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("widths", [(16, 24), (24, 16)])  # the head reads all of a tied table, or a prefix
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_decoders_gradients_are_those_of_its_logits(tied: bool, widths: tuple[int, int], reduction: str) -> None:
    layers = tuple(LayerShape(width, 2, 2, 8, 32) for width in widths)
    model = Decoder(DecoderSpec(layers, VOCAB, tie_embeddings=tied))
    init_weights(model, 0)
    rows = torch.randint(VOCAB, (11, 14), generator=torch.Generator().manual_seed(0))
    parameters = list(model.parameters())
    whole = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten(), reduction=reduction)
    theirs = torch.autograd.grad(whole.mean(), parameters)
    loss = model.loss(rows, reduction)
    assert loss.shape == (() if reduction == "mean" else (11, 13))
    torch.testing.assert_close(loss.flatten(), whole.view(-1), atol=1e-5, rtol=1e-5)
    for ours, expected in zip(torch.autograd.grad(loss.mean(), parameters), theirs, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)
