"""Where the cells of an experiment stand: `python -m orchestrator.status outputs/width_ablation --watch`.

Everything is read from the run directory, never from the processes: a cell's files and locks are all it says of itself.
"""

from orchestrator.monitoring.cells import CellStatus, experiment_lock, read_status
from orchestrator.monitoring.watch import Screen, watch

__all__ = ["CellStatus", "Screen", "experiment_lock", "read_status", "watch"]
