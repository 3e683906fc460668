"""Build the table of what the verdicts cost."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.formatting import number
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.common.formatting import work
from orchestrator.experiments.costs import Cost, total
from orchestrator.experiments.dependency import awaited_arms


def cost_of(c: Comparison, *arms: str) -> Cost:
    """Return the cost of all attempts of all cells of `arms`."""
    return total([cost for cell, cost in c.experiment.costs.items() if cell.partition("/")[0] in arms])


def whole_cost(c: Comparison) -> Cost:
    """Return the cost of the experiment, with the search that chose its arms."""
    return cost_of(c, *c.experiment.arms, *c.experiment.dropped) + c.experiment.search_cost


def verdict_cost(c: Comparison, arm: str) -> Cost:
    """Return the cost of comparing `arm`: its own, the baseline's, that of arms they wait for, and the search's."""
    return cost_of(c, *_needed(c, {arm, c.baseline})) + c.experiment.search_cost


def _needed(c: Comparison, arms: set[str]) -> set[str]:
    """Return `arms`, and those from which they branch or whose result they need."""
    configs = [cell.config for cell in c.experiment.cells if cell.arm in arms and (cell.path / "config.yaml").is_file()]
    every = arms | {awaited for config in configs for _, _, awaited in awaited_arms(config)}
    return arms if every == arms else _needed(c, every)


def verdict_costs(c: Comparison) -> Section:
    """Return the cost of each arm's cells and of its verdict."""
    searched, rows = c.experiment.search_cost, list[list[TableCell]]()
    if whole_cost(c) != Cost():
        for arm in c.experiment.arms:
            own = cost_of(c, arm)
            rows.append([arm, written(own), "" if arm == c.baseline else _priced(c, verdict_cost(c, arm))])
        if searched != Cost():
            rows.append(["the search", written(searched), ""])
        rows.append(["all", _priced(c, whole_cost(c)), ""])
    notes = ["A verdict costs all attempts of its arm, of the baseline, of arms that these wait for, and the search."]
    return Section("What the verdicts cost", ["arm", "its cells", "its verdict"], rows, notes)


def written(cost: Cost) -> str:
    """Write a cost as `2.5 core-hours`."""
    parts = [(cost.gpu_hours, "GPU"), (cost.core_hours, "core")]
    return " and ".join(work(3600 * hours, unit) for hours, unit in parts if hours) or "nothing"


def _priced(c: Comparison, cost: Cost) -> str:
    price = c.experiment.budget.get("price")
    return written(cost) + (f", at budget.price {number(cost.money(price), 3)}" if price else "")
