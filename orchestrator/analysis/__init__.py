"""Compare the arms of an experiment from its directory alone: tables, figures, report, verdict.

`cells` reads the directory, `pairs` pairs the cells, `comparison` computes everything once, and the rest shows it.
To add:

- a figure: a function from a `Comparison` to a `Drawing`, and a line in `figures.FIGURES`
- a table of the report: a function from a `Comparison` to a `Section`, and its call in a line of
  `report.chapters.CHAPTERS`; for the terminal and W&B too, one in `sections.sections`
- a table in parquet and CSV: a function to rows, its columns in `tables.COLUMNS` and a line in `tables.BUILDERS`
- a finding: a function to a `Finding`, and a line in `findings.FINDINGS`
- a definition: an entry of `report.glossary.OWN`, and a line in `HEADS` for the column that it explains
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.analysis import figures, report, tables
from orchestrator.analysis.comparison import Comparison, compute
from orchestrator.analysis.summary import print_summary
from orchestrator.common.errors import UserError
from orchestrator.storage import locks

__all__ = ["Comparison", "compare", "print_summary"]


def compare(experiment_dir: Path) -> Comparison:
    """Compare the arms in `experiment_dir` and write everything under its `comparison/`.

    Raises `UserError` for a directory that is not an experiment, for cells that are not comparable, and for a file that
    cannot be read or written.
    """
    try:
        comparison = compute(experiment_dir)
    except OSError as error:
        raise UserError(f"{experiment_dir} cannot be read ({error}): make its files readable.") from error
    drawn = figures.draw(comparison)
    with locks.hold(experiment_dir / ".comparison.lock"):  # so that two processes do not mix their files
        try:
            tables.write(comparison.tables, comparison.directory / "tables")
            figures.write(drawn, comparison.directory / "figures")
            report.write(comparison, drawn)
        except OSError as error:
            raise UserError(
                f"{comparison.directory} cannot be written ({error}): make it a writable directory with free space, "
                f"then run python -m orchestrator.compare {experiment_dir}."
            ) from error
    return comparison
