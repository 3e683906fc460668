"""Predicted memory against autograd's own list of what it keeps, tensors that are there, and arithmetic by hand."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder
from orchestrator.config import load
from orchestrator.config.schema import Config, DataConfig, DomainConfig, Norm, TrainConfig
from orchestrator.experiments.experiment import decoder_spec
from orchestrator.interventions.intervene import Options, intervene
from orchestrator.interventions.progress import Progress
from orchestrator.plan.arm import ArmPlan
from orchestrator.plan.memory import activations, intervening, loss, peak
from tests.orchestrator.plan.paper import PAPER

Orchestrate = Callable[..., int]


def kept_by_autograd(spec: DecoderSpec, rows: torch.Tensor, half: bool) -> int:
    """Bytes of every storage but the parameters' own that the loss of `rows` saves for its backward pass."""
    model, storages = Decoder(spec), {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    precision = torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision:
        loss = model.loss(rows)
        assert loss.requires_grad
    return sum(storages.values())


SHAPES = (
    [LayerShape(96, 6, 6, 16, 288)] * 3,
    [LayerShape(64, 4, 2, 16, 200)] * 4,
    [LayerShape(64, 5, 5, 16, 200), LayerShape(96, 6, 6, 16, 300), LayerShape(128, 8, 8, 16, 400)],
)


@pytest.mark.parametrize("length", [64, 200, 300])  # one block of our own attention, several, torch's
@pytest.mark.parametrize(("shapes", "norm", "half"), itertools.product(SHAPES, Norm, (False, True)))
def test_activations_are_what_autograd_keeps(shapes: list[LayerShape], norm: Norm, half: bool, length: int) -> None:
    spec = DecoderSpec(tuple(shapes), vocab_size=512, norm=norm.value, tie_embeddings=False)
    rows = torch.randint(512, (2, length + 1))
    tokens = 2 * length
    afterwards = tokens * 512 * (4 + 2 * half)  # the gradient of the logits, which the backward pass adds
    predicted = activations(spec, tokens, length, half=half, on_gpu=False) + loss(spec, tokens, half=half) - afterwards
    assert predicted == pytest.approx(kept_by_autograd(spec, rows, half), rel=0.02)


class Held(TorchDispatchMode):
    """The most bytes of tensors that there are at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.most, self.seen = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.bytes += storage.nbytes()
                self.most = max(self.most, self.bytes)
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return found

    def free(self, storage: int, size: int) -> None:
        self.seen.remove(storage)
        self.bytes -= size


@pytest.mark.parametrize(
    "more", [("width=ramp",), ("model.width=128", "model.layers=2", "train.seq_len=300", "data.heldout_tokens=512")]
)
def test_interventions_hold_what_is_counted(
    more: tuple[str, ...], orchestrate: Orchestrate, small: list[str], tmp_path: Path
) -> None:
    assert orchestrate(*small, "launcher=debug", "train.steps=6", "tracker=off", *more) == 0
    (cell,) = (tmp_path / "outputs").glob("*/*/seed=0")
    config = load.from_file(cell / "config.yaml")
    with Held() as held:
        intervene(cell, Options(("delete", "swap")), Progress(), device="cpu")
    assert intervening(decoder_spec(config), config.train.seq_len + 1) == pytest.approx(held.most, rel=0.3)


def test_memory_is_at_least_weights_gradients_and_moments() -> None:
    config = Config(train=TrainConfig(batch_size=1, seq_len=8))
    spec = decoder_spec(config)
    params = ArmPlan("a", config, spec).params
    assert peak(config, spec, traces=0, on_gpu=True) == 16 * params
    assert peak(config, spec, traces=1000, on_gpu=True) == 16 * params + 4000
    wide = replace(config, train=TrainConfig(batch_size=64, seq_len=512))
    whole = peak(wide, spec, 0, on_gpu=True)
    split = peak(replace(wide, train=replace(wide.train, micro_batch_size=16)), spec, 0, on_gpu=True)
    assert whole - 12 * params > 3.5 * (split - 16 * params)  # whose gradients stand beside a pass
    assert peak(wide, spec, 0, on_gpu=False) > whole  # fp32 there


def test_the_memory_of_a_rank_by_hand() -> None:
    config = Config(model=PAPER, data=DataConfig({"code": DomainConfig()}), train=TrainConfig(batch_size=8))
    spec, tables = decoder_spec(config), 2 * 117_000 * 1168
    largest = 4 * 1168 * 18 * 64 + 3 * 1168 * 3504
    alone = peak(config, spec, 0, on_gpu=True)
    config.launcher.ranks = 8
    shared = peak(config, spec, 0, on_gpu=True)
    own = activations(spec, 8 * 128 / 8, 128, half=True, on_gpu=True) + loss(spec, 8 * 128 / 8, half=True)
    # norms are gathered, too: less than a part in a thousand
    assert shared == pytest.approx(3 * 4 * 467_626_320 / 8 + 4 * (tables + largest) + own, rel=1e-3)
    assert shared < alone / 2
