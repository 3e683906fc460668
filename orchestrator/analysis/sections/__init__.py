"""The summary's tables in their order."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.sections.delivery import delivery
from orchestrator.analysis.sections.inside import budgets, layers, multipliers, spreads
from orchestrator.analysis.sections.outcomes import (
    arm_losses,
    cell_losses,
    contrasts,
    corrected_over_arms,
    equal_cost,
    multiplicity,
    paired_losses,
)
from orchestrator.analysis.sections.section import Cell, Section
from orchestrator.analysis.story import findings
from orchestrator.analysis.wording import number

MANY_ARMS = 4  # beyond which a terminal shows one line per arm


def sections(c: Comparison) -> list[Section]:
    """Everything: what was asked across arms, then per other arm losses, layers, budget, multipliers.

    Without a complete pair: every cell's losses and layers.
    """
    found = headlines(c)
    for arm in c.compared:
        found += [*_of_arm(c, arm), budgets(c, arm), *multipliers(c, arm)]
    if not many_arms(c):
        found.append(spreads(c))
    return _with_rows([*found, *_alone(c)])


def brief(c: Comparison) -> list[Section]:
    """What a terminal shows below the first answers: losses and layers, or of many arms one line each."""
    details = [] if many_arms(c) else [section for arm in c.compared for section in _of_arm(c, arm)]
    return _with_rows([*headlines(c), *details, *_alone(c)])


def _of_arm(c: Comparison, arm: str) -> list[Section]:
    return [paired_losses(c, arm), equal_cost(c, arm), layers(c, [c.baseline, arm])]


def _alone(c: Comparison) -> list[Section]:
    return [] if c.pairs else [cell_losses(c), *(layers(c, [arm]) for arm in c.experiment.arms)]


def _with_rows(found: list[Section]) -> list[Section]:
    return [section for section in found if section.rows]


def headlines(c: Comparison) -> list[Section]:
    """Across arms: one line for each, where there are many, the contrasts, and what was intended."""
    found = [arm_losses(c), contrasts(c), delivery(c), spreads(c)] if many_arms(c) else [contrasts(c), delivery(c)]
    return _with_rows(found)


def glance(c: Comparison) -> Section:
    """One line per compared arm: p of its loss, corrected for their number, and the first answers."""
    corrected = corrected_over_arms(c)
    told = {arm: findings(c, arm) for arm in c.compared}
    questions = list(dict.fromkeys(finding.question for found in told.values() for finding in found))
    rows: list[list[Cell]] = []
    for arm, found in told.items():
        answers = {finding.question: finding.answer for finding in found}
        rows.append([arm, number(corrected.get(arm), 3), *(answers.get(question, "–") for question in questions)])
    title, columns = f"Every arm against {c.baseline}", ["arm", "Holm", *questions]
    return Section(title, columns, rows, [multiplicity(c)] if corrected else [], {"Holm": "holm"})


def many_arms(c: Comparison) -> bool:
    """Whether details of every arm would bury what was asked."""
    return len(c.experiment.arms) > MANY_ARMS and bool(c.pairs)
