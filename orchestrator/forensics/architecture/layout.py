"""Names and forms of a family's tensors: what each stored tensor holds, and how it is split into matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from orchestrator.forensics.architecture.kinds import KINDS, PLACES

# A norm within attention, not in the residual stream.
QK_NORM = re.compile(r"(^|[._])((q|k|query|key)_?(layer_?)?norm|norm_[qk]\b)")


@dataclass(frozen=True)
class Heads:
    """The attention heads of one layer."""

    heads: int
    kv_heads: int
    head_dim: int


# Splits a stored tensor into matrices [out, in]; views where the layout allows them.
Split = Callable[[Tensor, Heads | None], Sequence[Tensor]]


def whole(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """One matrix, a `Linear.weight` of its own."""
    return [raw]


def halves(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """Two matrices of equal height, stored one above the other."""
    return raw.tensor_split(2)


def stacked(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """q, k and v, stored one above the other; equal thirds of a matrix three times as high as wide need no heads."""
    if heads is None and raw.shape[0] == 3 * raw.shape[1]:
        return raw.tensor_split(3)
    if heads is None:
        raise ValueError("the number of heads is unknown")
    kv = heads.kv_heads * heads.head_dim
    return raw.split([heads.heads * heads.head_dim, kv, kv])


def grouped(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """q, k and v, stored group by group: query heads, then the key and value head that they share. Copies the tensor.

    Groups of one query head are GPT-NeoX's interleaving; a single group is multi-query attention.
    """
    if heads is None:
        raise ValueError("the number of heads is unknown")
    groups = raw.view(heads.kv_heads, heads.heads // heads.kv_heads + 2, heads.head_dim, raw.shape[1])
    return [part.flatten(0, 2) for part in (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])]


def with_gates(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """q of each head, stored above the matrix of the head's output gate, which is left aside. Copies the tensor."""
    if heads is None:
        raise ValueError("the number of heads is unknown")
    return [raw.view(heads.heads, 2, heads.head_dim, raw.shape[1])[:, 0].flatten(0, 1)]


def quarters(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """q, v and k, in this order, in each of four stacked groups of heads (CodeGen, for four devices)."""
    q, v, k = raw.unflatten(0, (4, 3, -1)).unbind(1)
    return [part.flatten(0, 1) for part in (q, k, v)]


@dataclass(frozen=True)
class Part:
    """One stored tensor of a layer, and the matrices it holds, in order."""

    tensor: str
    kinds: tuple[str, ...]
    split: Split = whole
    transposed: bool = False  # stored [in, out], as GPT-2's Conv1D is

    def matrices(self, raw: Tensor, heads: Heads | None) -> dict[str, Tensor]:
        """Kind → its matrix [out, in], from the stored tensor."""
        return dict(zip(self.kinds, self.split(raw.T if self.transposed else raw, heads), strict=True))


@dataclass(frozen=True)
class Family:
    """The layout of a family. Names are relative to a stem (`model.`, `bert.`, none …) that is found in the file."""

    parts: tuple[Part, ...]
    norms: Mapping[str, str]  # of PLACES → name within the layer; parallel blocks have one norm at two places
    declared: tuple[str, ...] = ()  # "norm=…" in our spec, else a model_type; empty: its name in `FAMILIES`
    when: Mapping[str, Any] = field(default_factory=dict)  # further config keys that must have these values
    offset: float = 0.0  # added to the stored norm scale to get the one that multiplies
    starts_at_0: bool = True  # the stored scale, where 1 is added: trained ones then lie on both sides of 0
    optional: tuple[str, ...] = ()  # places whose norm some layers do without
    aside: str = ""  # pattern of further weights within a layer, which belong to neither attention nor FFN
    mixed: bool = False  # a layer may hold experts in place of the FFN, or another mixer in place of attention
    single: bool = False  # a layer holds one branch alone
    stored: str = ""  # config key of the number of layers in the file, where layers share their weights
    layer: str = "layers.{}."
    embed: str = "embed_tokens.weight"
    final: str = "norm.weight"  # the norm after the last layer; empty where there is none
    head: str = "lm_head.weight"  # under the stem or a module around it; empty where none reads the stream directly

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of matrices it has, in the order of `KINDS`."""
        held = {kind for part in self.parts for kind in part.kinds}
        return tuple(kind for kind in KINDS if kind in held)

    def leaves(self, name: str) -> bool:
        """True for a further weight of a layer that is left aside on purpose."""
        return bool(self.aside) and re.search(self.aside, name) is not None

    def part(self, kind: str) -> Part:
        """The stored tensor that holds the matrix of this kind."""
        return next(part for part in self.parts if kind in part.kinds)


def plain(**names: str) -> tuple[Part, ...]:
    """Parts of one matrix each: kind → name of its module."""
    return tuple(Part(f"{name}.weight", (kind,)) for kind, name in names.items())


def fused(tensor: str, split: Split, kinds: tuple[str, ...] = ("q", "k", "v")) -> tuple[Part, ...]:
    """One part of several matrices, stored in one module."""
    return (Part(f"{tensor}.weight", kinds, split),)


def norms(*names: str | None) -> dict[str, str]:
    """Position → name of its norm, from names in the order of PLACES; None where the family has no norm."""
    return {place: f"{name}.weight" for place, name in zip(PLACES, names, strict=False) if name}
