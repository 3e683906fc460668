"""The state of an experiment's cells, as their files and locks show it; their processes are never asked."""

from orchestrator.monitoring.cells import CellStatus, experiment_lock, read_status
from orchestrator.monitoring.watch import Screen, watch

__all__ = ["CellStatus", "Screen", "experiment_lock", "read_status", "watch"]
