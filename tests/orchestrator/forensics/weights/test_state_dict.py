"""A state dict as a store: references until a tensor is loaded, then a copy of that tensor alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.state_dict import StateDict
from tests.naming import naming


def test_only_what_is_loaded_is_copied() -> None:
    weight = torch.arange(12.0).reshape(4, 3)
    store = StateDict({"model": {"w": weight, "tied": weight}, "step": 3, "names": ["w"]}, "state dict")
    assert store.shapes == {("model", "w"): (4, 3), ("model", "tied"): (4, 3)}
    weight[0, 0] = 7  # seen, since nothing was copied yet
    whole, rows = store.load(("model", "w")), store.load(("model", "w"), slice(1, 3))
    assert torch.equal(whole, weight)
    assert torch.equal(rows, weight[1:3])
    whole.zero_()
    rows.zero_()
    assert weight.count_nonzero() == 12


def test_a_copy_has_every_name_and_shares_nothing() -> None:
    weight = torch.arange(12.0).reshape(4, 3)
    copy = StateDict({"head": weight, "model": {"embed": weight, "turned": weight.T}}, "state dict").copy()
    weight.zero_()
    assert list(copy) == ["head", "model.embed", "model.turned"]
    assert torch.equal(copy["head"], copy["model.embed"])
    assert torch.equal(copy["head"], copy["model.turned"].T)
    assert len({tensor.data_ptr() for tensor in copy.values()}) == 3
    assert all(tensor.is_contiguous() and tensor.any() for tensor in copy.values())


def test_types_are_as_stored() -> None:
    store = StateDict({"w": nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))}, "state dict")
    assert store.load(("w",)).dtype == torch.bfloat16
    assert not store.load(("w",)).requires_grad


class Packed(torch.Tensor):
    """A tensor whose entries are not its values, as libraries of quantisation have them."""


def test_tensors_of_other_classes_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=naming("layers.0.w", "Llama", "Packed")):
        StateDict({"layers.0.w": torch.ones(2, 2).as_subclass(Packed)}, "Llama")
