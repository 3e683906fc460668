"""Forensics: the role of each layer of a model, read from its weights and not from its training.

`analyze` takes a checkpoint, a state dict or a live module, and returns a `Reading`.

Imports go one way: output, callbacks → render → analyzer → reading → roles → null → measures → architecture → weights.
docs/recipes.md says how to add a measure, a routed feature or a family of checkpoints.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.forensics.analyzer import analyze
    from orchestrator.forensics.reading import Reading

__all__ = ["Reading", "analyze"]

HOMES = {"analyze": "analyzer", "Reading": "reading"}  # name → its module, imported on first use: torch takes seconds


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
