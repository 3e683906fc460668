"""Build the tables of a comparison, in the order of the terminal. Add one as a function and a line in `sections`."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.findings import findings
from orchestrator.analysis.formatting import number
from orchestrator.analysis.sections import costs, expectations, forks, layers, losses, search, trajectory
from orchestrator.analysis.sections.lineage import lineage
from orchestrator.analysis.sections.section import Section, TableCell

MANY_ARMS = 4  # beyond which a terminal shows one line per arm


def sections(c: Comparison) -> list[Section]:
    """Build every table: those across arms, then per compared arm losses, layers, budget, multipliers.

    Without a complete pair: every cell's losses and layers.
    """
    found = [lineage(c), *_across_arms(c)]
    for arm in c.compared:
        found += [*_of_arm(c, arm), layers.flattening(c, arm), layers.budgets(c, arm), *layers.multipliers(c, arm)]
        found.append(forks.horizons(c, arm))
    if not many_arms(c):
        found += [layers.spreads(c), layers.write_spreads(c)]
    found += [*_without_pairs(c), *trajectory.tables(c), search.trials(c), search.screened(c), costs.verdict_costs(c)]
    return _with_rows(found)


def brief(c: Comparison) -> list[Section]:
    """Build the tables below the findings in a terminal: of losses and layers, or a line per arm if there are many."""
    details = [] if many_arms(c) else [section for arm in c.compared for section in _of_arm(c, arm)]
    found = [lineage(c), *_across_arms(c), *details, *_without_pairs(c), trajectory.commitments(c)]
    found += [search.trials(c, whole=False), search.screened(c)]
    return _with_rows(found)


def _across_arms(c: Comparison) -> list[Section]:
    found = [losses.contrasts(c), expectations.verdicts(c)]
    return [losses.arm_losses(c), *found, layers.spreads(c), layers.write_spreads(c)] if many_arms(c) else found


def _of_arm(c: Comparison, arm: str) -> list[Section]:
    return [
        losses.paired_losses(c, arm),
        losses.equal_cost(c, arm),
        layers.by_layer(c, [c.baseline, arm]),
        layers.damages(c, arm),
    ]


def _without_pairs(c: Comparison) -> list[Section]:
    return [] if c.pairs else [losses.cell_losses(c), *(layers.by_layer(c, [arm]) for arm in c.experiment.arms)]


def _with_rows(found: list[Section]) -> list[Section]:
    return [section for section in found if section.rows]


def glance(c: Comparison) -> Section:
    """Build a line per compared arm: Holm's p of its loss over the arms, and the answer to each question."""
    corrected = {arm: r.p_adjusted for arm, r in c.primary.items()}
    answers = {arm: {finding.question: finding.answer for finding in findings(c, arm)} for arm in c.compared}
    questions = list(dict.fromkeys(question for own in answers.values() for question in own))
    rows: list[list[TableCell]] = [
        [arm, number(corrected.get(arm), 3), *(own.get(question, "–") for question in questions)]
        for arm, own in answers.items()
    ]
    notes = [losses.multiplicity(c)] if corrected else []
    return Section(f"Every arm against {c.baseline}", ["arm", "Holm", *questions], rows, notes, {"Holm": "holm"})


def many_arms(c: Comparison) -> bool:
    """Return true where a terminal shows one line per arm."""
    return len(c.experiment.arms) > MANY_ARMS and bool(c.pairs)
