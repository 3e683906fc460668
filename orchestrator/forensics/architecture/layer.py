"""One layer of a checkpoint, and one expert of a mixture: their matrices and norms, read on demand."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Protocol

from torch import Tensor, aminmax

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.description import Description
from orchestrator.forensics.architecture.kinds import BEHIND, FFN
from orchestrator.forensics.architecture.layout import Family, Heads, Part
from orchestrator.forensics.weights.tensors import LARGEST, Tensors


class Model(Protocol):
    """The parts of a `CheckpointModel` that its layers and its checks read."""

    tensors: Tensors
    optimizer: Tensors | None
    directory: Path
    description: Description
    family: Family
    family_name: str
    stem: str
    heads: list[Heads | None]
    assumed: list[str]

    def __len__(self) -> int: ...

    def layer(self, index: int) -> Layer: ...

    def kinds(self, index: int) -> tuple[str, ...]: ...

    def width(self, index: int) -> int: ...

    def names(self, index: int) -> list[str]: ...

    def prefix(self, index: int) -> str: ...

    def shape(self, index: int, kind: str) -> tuple[int, int]: ...


class Layer:
    """One layer's tensors. Weights are read on first use and kept as long as this object."""

    def __init__(self, model: Model, index: int) -> None:
        self.model = model
        self.index = index
        self.heads = model.heads[index]
        self.kinds = model.kinds(index)  # of KINDS: an FFN without a gate has only up and down
        self.width = model.width(index)  # residual coordinates that the layer reads and writes
        self._weights: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor | None] = {}

    @property
    def parameters(self) -> int:
        """Entries of its matrices."""
        return sum(prod(self.shape(kind)) for kind in self.kinds)

    def name(self, kind: str) -> str:
        """Full name of the tensor that holds this matrix; `name[kind]` where it holds others too."""
        part = self.model.family.part(kind)
        return self._stored(kind) + (f"[{kind}]" if len(part.kinds) > 1 else "")

    def shape(self, kind: str) -> tuple[int, int]:
        """Shape [out, in] of the matrix, from the file's headers."""
        return self.model.shape(self.index, kind)

    def weight(self, kind: str) -> Tensor:
        """The matrix in fp32, [out, in]: q [a,d] · k,v [kv,d] · o [d,a] · gate,up [f,d] · down [d,f]."""
        if kind not in self._weights:
            part = self.model.family.part(kind)
            self._weights |= part.matrices(self.model.tensors.read(self._stored(kind)), self.heads)
        return self._weights[kind]

    def folded(self, kind: str) -> Tensor:
        """`weight(kind)` times the scale of the norm that it reads behind, if any: [out, in].

        Moving a scale into the matrices after it leaves the function as it is, and so must leave the measures. The
        weight itself is not kept: with both, a layer would be in memory twice.
        Raises `UserError` where the product is too large for fp32 to square.
        """
        place = BEHIND.get(kind)
        scale = None if place is None else self.norm(place)
        weight = self.weight(kind)
        del self._weights[kind]
        if scale is None:
            return weight
        folded = weight * scale
        largest = max(abs(float(extreme)) for extreme in aminmax(folded))
        if largest > LARGEST:
            raise UserError(
                f"{self.name(kind)} times the scale of the norm before it holds values up to {largest:.0e}, whose "
                "squares fp32 cannot sum: use a checkpoint from before they grew."
            )
        return folded

    def norm(self, place: str) -> Tensor | None:
        """The scale γ [d] at one of PLACES, as it multiplies; None where the layer has no norm there."""
        if place not in self._norms:
            family = self.model.family
            name = self.model.prefix(self.index) + family.norms.get(place, "")
            held = name in self.model.tensors
            self._norms[place] = self.model.tensors.read(name) + family.offset if held else None
        return self._norms[place]

    def moment(self, kind: str, which: str) -> Tensor | None:
        """Adam's `exp_avg` or `exp_avg_sq`, cut like the weight; None without an optimizer state."""
        optimizer, name = self.model.optimizer, f"{self._stored(kind)}.{which}"
        if optimizer is None or name not in optimizer:
            return None
        if optimizer.shape(name) != self.model.tensors.shape(self._stored(kind)):
            raise UserError(f"{name} has shape {optimizer.shape(name)}, unlike its weight: the files are of two runs.")
        return self.model.family.part(kind).matrices(optimizer.read(name), self.heads)[kind]

    def trace(self, kind: str) -> list[float]:
        """cos(−exp_avg, w) of the last recorded steps; empty without a trace."""
        return self.model.description.trace.get(self.name(kind), [])

    def _stored(self, kind: str) -> str:
        return self.model.prefix(self.index) + self.model.family.part(kind).tensor


class Expert(Layer):
    """One expert of a layer: an FFN of its own. Like a layer, it keeps the weights that it has read."""

    def __init__(self, model: Model, index: int, number: int | None, parts: Sequence[Part]) -> None:
        """`number`: from 0; None for the expert that reads every token."""
        super().__init__(model, index)
        self.number, self.heads, self._parts = number, None, parts
        self.kinds = tuple(kind for kind in FFN if any(kind in part.kinds for part in parts))

    @property
    def label(self) -> str:
        """Its name in messages and tables: `model.layers.3 expert 7`."""
        name = "shared expert" if self.number is None else f"expert {self.number}"
        return f"{self.model.prefix(self.index).rstrip('.')} {name}"

    def name(self, kind: str) -> str:
        """The expert and the kind of the matrix: `model.layers.3 expert 7 gate`."""
        return f"{self.label} {kind}"

    def shape(self, kind: str) -> tuple[int, int]:
        """Shape [out, in] of the matrix."""
        rows, columns = self.weight(kind).shape
        return rows, columns

    def weight(self, kind: str) -> Tensor:
        """The matrix in fp32, [out, in]; of a tensor of all experts, only this one's part is read."""
        if kind not in self._weights:
            part = next(part for part in self._parts if kind in part.kinds)
            name = self.model.prefix(self.index) + part.tensor.format(self.number)
            is_own = self.number is None or "{}" in part.tensor
            rows = None if is_own else slice(self.number, (self.number or 0) + 1)
            raw = self.model.tensors.read(name, rows)
            self._weights |= part.matrices(raw if is_own else raw[0], None)
        return self._weights[kind]

    def moment(self, kind: str, which: str) -> Tensor | None:
        """None: the optimizer's state of experts is not read."""
        return None

    def trace(self, kind: str) -> list[float]:
        """Empty, for the same reason."""
        return []
