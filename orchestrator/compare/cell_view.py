"""One cell seen as a comparison without pairs: the tables and figures that it fills by itself."""

from __future__ import annotations

from orchestrator.compare.cells import CellResult, ExperimentResult
from orchestrator.compare.comparison import Comparison, compare_cells


def view_of(cell: CellResult) -> Comparison:
    """What can be said of `cell` as an experiment of one arm and one seed."""
    experiment = ExperimentResult(
        path=cell.path, name=cell.label, question="", arms=[cell.arm], seeds=[cell.seed], cells=[cell]
    )
    return compare_cells(experiment)
