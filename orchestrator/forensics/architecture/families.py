"""The table of known families, one entry per layout: names of its matrices and norms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.forensics.architecture.decoders import DECODERS
from orchestrator.forensics.architecture.encoders import ENCODERS
from orchestrator.forensics.architecture.layout import Family
from orchestrator.forensics.architecture.mixtures import MIXTURES

# The first entry whose `declared`, `when` and tensors match is taken: special families come before general ones.
FAMILIES = DECODERS | MIXTURES | ENCODERS
FAMILIES = {name: replace(family, declared=family.declared or (name,)) for name, family in FAMILIES.items()}


def find(declared: str, config: Mapping[str, Any], names: Iterable[str] = ()) -> tuple[str, Family] | None:
    """Name and layout of the family that a checkpoint declares; None for one that is not in the table.

    `names`: of its tensors, for families that have two layouts under one declaration.
    """
    found = [
        (name, family)
        for name, family in FAMILIES.items()
        if declared in family.declared and all(config.get(key) == value for key, value in family.when.items())
    ]
    ends = tuple(names)
    for name, family in found:
        if all(any(held.endswith(part.tensor) for held in ends) for part in family.parts):
            return name, family
    return found[0] if found else None
