"""Build the table of what the verdicts cost."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.formatting import number
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.common.formatting import work
from orchestrator.experiments.costs import Cost, total


def cost_of(c: Comparison, *arms: str) -> Cost:
    """Return the cost of all attempts of all cells of `arms`."""
    return total([cost for cell, cost in c.experiment.costs.items() if cell.partition("/")[0] in arms])


def whole_cost(c: Comparison) -> Cost:
    """Return the cost of the experiment, with the search that chose its arms."""
    return cost_of(c, *c.experiment.arms, *c.experiment.dropped) + c.experiment.search_cost


def verdict_costs(c: Comparison) -> Section:
    """Return what each arm took, and its verdict: with the baseline, and with the search where there was one."""
    searched, rows = c.experiment.search_cost, list[list[TableCell]]()
    if whole_cost(c) != Cost():
        for arm in c.experiment.arms:
            own = cost_of(c, arm)
            verdict = own + cost_of(c, c.baseline) + searched
            rows.append([arm, written(own), "" if arm == c.baseline else _priced(c, verdict)])
        if searched != Cost():
            rows.append(["the search", written(searched), ""])
        rows.append(["all", _priced(c, whole_cost(c)), ""])
    notes = ["All attempts of all cells count; the verdict's cost is that of the arm, the baseline and the search."]
    return Section("What the verdicts cost", ["arm", "its cells", "its verdict"], rows, notes)


def written(cost: Cost) -> str:
    """Write a cost as `2.5 core-hours`."""
    parts = [(cost.gpu_hours, "GPU"), (cost.core_hours, "core")]
    return " and ".join(work(3600 * hours, unit) for hours, unit in parts if hours) or "nothing"


def _priced(c: Comparison, cost: Cost) -> str:
    price = c.experiment.budget.get("price")
    return written(cost) + (f", {number(cost.money(price), 3)} of money" if price else "")
