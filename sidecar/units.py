"""Units, the parts of a model that each have a multiplier: a tensor, a layer, or a branch of a layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LAYER = re.compile(r"(?:^|\.)(\d+)\.")  # the first number in a parameter's name is its layer
SHARES = ("none", "kind", "layer", "all")  # units that have one multiplier in common


@dataclass(frozen=True)
class Unit:
    """A part of the model that has a multiplier in one channel."""

    name: str
    kind: str  # equal for corresponding units of all layers, e.g. mlp.down_proj.weight; embedding, head
    layer: int | None  # None: outside the layers
    depth: float  # 0 at the first layer, 1 at the last; outside the layers in the middle, so that no tilt acts
    size: int  # number of its parameters, its weight in parameter-weighted means
    inputs: int = 1  # columns of its matrix; 0 for a vector

    @property
    def short_kind(self) -> str:
        """The last name of the kind, e.g. `down_proj`."""
        return self.kind.removesuffix(".weight").rpartition(".")[2]

    def is_of(self, kind: str) -> bool:
        """True where the unit's kind is `kind`, or ends with it: `down_proj`, `mlp.down_proj`."""
        return f".{self.kind.removesuffix('.weight')}".endswith(f".{kind}")


def layer_in(name: str) -> tuple[str, int, str] | None:
    """The prefix, layer and rest of a parameter's or module's name; None outside numbered layers."""
    found = LAYER.search(name)
    return None if found is None else (name[: found.end() - 1], int(found[1]), name[found.end() :])


def place_of(name: str, is_embedding: bool) -> tuple[str, int | None]:
    """The kind and the layer of a matrix; outside the layers, `embedding` or `head` and None."""
    if place := layer_in(name):
        return place[2], place[1]
    return "embedding" if is_embedding else "head", None


def make_units(named: Iterable[tuple[str, str, int | None, int, int]]) -> list[Unit]:
    """Units from (name, kind, layer, size, inputs), with their depth.

    In a model of several stacks, such as an encoder and a decoder, kinds begin with the name of their stack.
    """
    rows = list(named)
    last = max((layer for _, _, layer, _, _ in rows if layer is not None), default=0)
    stacks = [place[0].rpartition(".")[0] if (place := layer_in(f"{name}.")) else None for name, *_ in rows]
    several = len(set(stacks) - {None}) > 1
    return [
        Unit(
            name,
            f"{stack}.{kind}" if several and stack is not None else kind,
            layer,
            0.5 if layer is None else layer / max(last, 1),
            size,
            inputs,
        )
        for (name, kind, layer, size, inputs), stack in zip(rows, stacks, strict=True)
    ]


def groups_of(units: Sequence[Unit], share: str) -> list[int]:
    """The group of each unit, numbered from 0 in order of appearance. The units of a group share one multiplier.

    With `layer`, units outside the layers share one each by kind.
    """
    key = {
        "none": lambda u: u.name,
        "kind": lambda u: u.kind,
        "layer": lambda u: u.kind if u.layer is None else u.layer,
        "all": lambda u: "",
    }[share]
    numbers: dict[object, int] = {}
    return [numbers.setdefault(key(unit), len(numbers)) for unit in units]
