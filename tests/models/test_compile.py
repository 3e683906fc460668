"""Compiled layers compute what the others do, in one graph for each shape."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import setuptools  # noqa: F401  # torch's compiler imports it, which fails once something else has brought in distutils
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from models import head_loss
from models.transformer import Decoder, init_weights
from models.width import build_spec

COMMON: dict[str, Any] = {"layers": 4, "width": 64, "head_dim": 16, "vocab_size": 264, "seq_len": 32}
RAMP = {"profile": "ramp", "start": 0.75, "end": 1.25}
ROWS = torch.randint(264, (3, 33), generator=torch.Generator().manual_seed(0))


def pair(**options: Any) -> tuple[Decoder, Decoder]:
    """A model, and a compiled copy of it."""
    torch._dynamo.reset()
    counters.clear()
    plain = Decoder(build_spec(**COMMON | options))
    init_weights(plain, 0)
    compiled = copy.deepcopy(plain)
    compiled.compile_layers()
    return plain, compiled


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are made, but no compiler works on them."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def loss_and_gradients(model: Decoder) -> list[Tensor]:
    loss = model.loss(ROWS)
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def assert_equal_training(plain: Decoder, compiled: Decoder) -> None:
    for theirs, ours in zip(*map(loss_and_gradients, (plain, compiled)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-5)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("norm", ["pre", "sandwich"])
@pytest.mark.parametrize("widths", [{}, RAMP], ids=["uniform", "ramp"])
def test_layers_of_one_shape_share_a_graph(norm: str, widths: dict[str, Any]) -> None:
    plain, compiled = pair(norm=norm, **widths)
    assert_equal_training(plain, compiled)
    assert graphs() == len(set(plain.spec.layers))
    assert not counters["graph_break"]
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.usefixtures("traced")
def test_more_shapes_than_torch_recompiles_by_itself() -> None:
    widths = {"profile": "explicit", "widths": [32 + 16 * i for i in range(12)], "layers": 12}
    torch._dynamo.reset()
    counters.clear()
    model = Decoder(build_spec(**COMMON | widths))
    model.compile_layers()
    model.loss(ROWS).backward()
    assert graphs() == 12


@pytest.mark.usefixtures("traced")
def test_passes_that_are_not_worth_it_use_the_graphs_that_are_there() -> None:
    plain, compiled = pair(norm="pre")
    compiled.loss(ROWS).backward()
    found = graphs()
    with torch.compiler.set_stance("eager_on_recompile"):
        with torch.no_grad():
            torch.testing.assert_close(compiled.loss(ROWS[:1, :9]), plain.loss(ROWS[:1, :9]))
        torch.testing.assert_close(compiled.loss(ROWS[:2], "none"), plain.loss(ROWS[:2], "none"))
    assert graphs() == found == 1


@pytest.mark.slow
def test_with_a_compiler_behind_them_and_a_chunked_head_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers share their graph, and one has its own. In fp32, cells do it: training/test_distributed.py."""
    monkeypatch.setattr(head_loss, "AT_ONCE", 1)
    plain, compiled = pair(norm="sandwich", profile="explicit", widths=[48, 80, 80], layers=3)
    exact = loss_and_gradients(plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        both = [loss_and_gradients(model) for model in (plain, compiled)]
    for truth, theirs, ours in zip(exact, *both, strict=True):  # each rounds in its own way
        assert (ours - truth).norm() <= 1.5 * (theirs - truth).norm() + 1e-3 * truth.norm()
