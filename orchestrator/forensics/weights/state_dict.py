"""Tensors in memory: a state dict on any device, copied one tensor at a time."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.common.errors import UserError

Key = tuple[Hashable, ...]


class StateDict:
    """The tensors of a mapping, by their path through nested mappings. It holds references, not copies."""

    def __init__(self, state: Mapping[Any, Any], name: str) -> None:
        """`name`: for messages. Raises `UserError` for a tensor that is not whole in this process."""
        self.path = Path(name)
        self._tensors = dict(_tensors(state, ()))
        self.shapes: dict[Key, tuple[int, ...]] = {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}
        for key, tensor in self._tensors.items():
            _refuse_parts(name, ".".join(map(str, key)), tensor)

    def load(self, key: Key, rows: slice | None = None) -> Tensor:
        """A copy on the CPU of the tensor, or of some of its rows, in its own type."""
        values = self._tensors[key] if rows is None else self._tensors[key][rows]
        return values.to("cpu", copy=True)

    def copy(self) -> dict[str, Tensor]:
        """Every tensor by its dotted name, contiguous on the CPU; tied ones each: nothing may describe the tie."""
        return {".".join(map(str, key)): self.load(key).contiguous() for key in self._tensors}

    def release(self) -> None:
        """Nothing is held but references."""


def _tensors(value: Any, key: Key) -> Iterator[tuple[Key, Tensor]]:
    """Every tensor with its path of keys; what is not a tensor is left out."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _tensors(inner, (*key, name))
    elif isinstance(value, Tensor):
        yield key, value.detach()


def _refuse_parts(name: str, tensor: str, values: Tensor) -> None:
    """Raise `UserError` for a tensor whose values are elsewhere: on other ranks, or nowhere yet."""
    if values.is_meta:
        raise UserError(f"{tensor} in {name} is on the meta device and has no values: load the weights first.")
    is_flat = "_flat_param" in tensor  # FSDP's first version joins the parameters of a block
    is_empty = tensor.endswith("weight") and values.shape == (0,)  # DeepSpeed's ZeRO-3 gathers them for a forward pass
    if is_flat or is_empty or type(values).__name__ == "DTensor":
        raise UserError(
            f"{tensor} in {name} is sharded over ranks: gather the weights first, with torch.distributed.checkpoint's "
            "get_model_state_dict and full_state_dict=True, or read a saved checkpoint."
        )
    if type(values) not in (Tensor, torch.nn.Parameter):
        raise UserError(f"{tensor} in {name} is a {type(values).__name__}, not a plain tensor: dequantise it first.")
