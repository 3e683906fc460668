"""Classify the layers of a checkpoint. Reads files; knows nothing of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.forensics.analyze import analyze

__all__ = ["analyze"]


def __getattr__(name: str) -> Any:
    """`analyze`, imported when it is wanted: torch takes seconds that `--help` need not wait for."""
    if name != "analyze":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from orchestrator.forensics.analyze import analyze

    return analyze
