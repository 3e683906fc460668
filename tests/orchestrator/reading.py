"""A reading's JSON, complete, with what a test is about given and the rest plain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.forensics.reading import DEFINITIONS, Reading
from orchestrator.forensics.roles.routing import ROLES


def layer_json(index: int = 0, role: str = "hub/specialist", **changes: Any) -> dict[str, Any]:
    """One layer of `role`; its scoring by the paper's rule is the same unless `role_paper` says otherwise."""
    assigned: dict[str, Any] = {
        "role": role, "margin": 0.2, "scores": dict.fromkeys(ROLES, 0.5), "evidence": ["+cv"], "coverage": 0.5
    }  # fmt: skip
    assigned |= {key: changes[key] for key in assigned if key in changes}
    return {
        "layer": index, **assigned, "role_paper": role, "scorings": {"paper": assigned}, "width": 64,
        "super_weight": None, "measures": {},
    } | changes  # fmt: skip


def reading_json(layers: Sequence[dict[str, Any]], step: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1, "definitions": DEFINITIONS, "source": "here", "family": "llama", "assumed": [], "step": step,
        "scoring": "paper",
        "options": {"reference": None, "optimizer": None, "resamples": 2, "seed": 0, "probed": False, "tokens": None},
        "missing": [], "substitutes": {}, "layers": list(layers), "totals": {}, "pathology": [],
    } | changes  # fmt: skip


def reading_of(roles: Sequence[str], measures: Sequence[dict[str, Any]] | None = None, step: int = 0) -> Reading:
    """A reading whose layers have these roles and measures."""
    of_layers = [{}] * len(roles) if measures is None else measures
    layers = [layer_json(i, role, measures=own) for i, (role, own) in enumerate(zip(roles, of_layers, strict=True))]
    return Reading.from_json(reading_json(layers, step))
