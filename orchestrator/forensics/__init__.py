"""Classify the layers of a checkpoint. Reads files; knows nothing of training."""

from orchestrator.forensics.analysis import analyze

__all__ = ["analyze"]
