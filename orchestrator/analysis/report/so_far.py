"""An experiment's results while its cells still train: marked as such, and never written to disk."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.analysis import figures
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.findings import findings
from orchestrator.analysis.report.page import page as report
from orchestrator.analysis.report.render import render
from orchestrator.analysis.sections import glance, losses, many_arms


def summary(c: Comparison) -> str:
    """Return the findings and the losses as a part of a page."""
    many = many_arms(c)
    found = {arm: [replace(finding, terms=()) for finding in findings(c, arm)] for arm in c.compared}
    per_arm = [losses.paired_losses(c, arm) for arm in c.compared]
    tables = [glance(c), losses.arm_losses(c)] if many else per_arm if c.pairs else [losses.cell_losses(c)]
    return render(
        "so_far.html.j2", c=c, findings={} if many else found, tables=[table for table in tables if table.rows]
    )


def page(c: Comparison) -> str:
    """Return the whole report, whose head says that it is not the last."""
    experiment = replace(c.experiment, question=f"So far: {c.experiment.question or c.experiment.name}")
    marked = replace(c, experiment=experiment)
    return report(marked, figures.draw(marked))
