"""The states of an experiment's cells, from their files, their locks and their queue, and a view of them."""

from orchestrator.monitoring.cells import CellStatus, read_status
from orchestrator.monitoring.watch import Screen, watch

__all__ = ["CellStatus", "Screen", "read_status", "watch"]
