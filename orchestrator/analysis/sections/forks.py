"""Build the table of a sidecar's forks: whether a short look ahead prefers what a long one does."""

from __future__ import annotations

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.formatting import number
from orchestrator.analysis.sections.section import Section, TableCell
from sidecar.bias import SHORT, HorizonBias


def horizons(c: Comparison, arm: str) -> Section:
    """Return a row per seed of the arm whose sidecar forked its run, and what holds over the seeds."""
    total = HorizonBias()
    rows: list[list[TableCell]] = []
    for cell in c.cells_of(arm):
        own = HorizonBias()
        for short, full in differences_of(cell):
            own.add(short, full)
            total.add(short, full)
        if own.pairs:
            rows.append([str(cell.seed), str(own.pairs), _percent(own), number(own.r, 2)])
    note = (
        f"{SHORT} steps ahead, {_percent(total)} of {total.pairs} pairs of forks prefer the other twin than at their "
        f"full horizon; the two differences of reward correlate with r = {number(total.r, 2)}."
    )
    title = f"Sidecar of {arm}: short and full horizon of its forks"
    terms = {"pairs": "forks", "disagree": "forks"}
    return Section(title, ["seed", "pairs", "disagree", "r"], rows, [note] if rows else [], terms)


def differences_of(cell: CellResult) -> list[tuple[float | None, float | None]]:
    """Return of every pair of forks how far the rewards of its twins differ, at the short and at the full horizon."""
    decisions = [record["sidecar"] for record in cell.metrics if "sidecar" in record]
    return [(short, full) for decision in decisions for short, full in decision.get("differences", [])]


def _percent(bias: HorizonBias) -> str:
    return "–" if bias.share is None else f"{100 * bias.share:.0f}\u00a0%"
