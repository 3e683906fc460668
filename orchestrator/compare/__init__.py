"""Compare the arms of an experiment from its directory alone: tables, figures, report, verdict."""

from __future__ import annotations

from pathlib import Path

from orchestrator.compare import figures, report, tables
from orchestrator.compare.comparison import Comparison, compute
from orchestrator.compare.summary import print_summary

__all__ = ["Comparison", "compare", "print_summary"]


def compare(experiment_dir: Path) -> Comparison:
    """Compare the arms in `experiment_dir` and write everything under its `comparison/`.

    Raises `UserError` for a directory that is no experiment, and for pairs that were not trained alike.
    """
    comparison = compute(experiment_dir)
    drawn = figures.draw(comparison)
    tables.write(comparison.tables, comparison.directory / "tables")
    figures.write(drawn, comparison.directory / "figures")
    report.write(comparison, drawn)
    return comparison
